"""Pruning inside an ordinary `fit`."""

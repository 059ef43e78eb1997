"""Scores and limits to a selection: which channels stay."""

"""Unsupervised domain adaptation: networks that are trained, and pruned, for a domain without labels."""

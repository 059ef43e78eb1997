"""Cuts channels out of a model: in a copy, in place, or as zeros for a while."""

"""Removes channels from a model: in a copy, in place, or with zeros for a while."""

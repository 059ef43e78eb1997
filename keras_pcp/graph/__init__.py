"""Finds coupled channels: traces a model, lets rules follow its channels, and builds a channel graph."""

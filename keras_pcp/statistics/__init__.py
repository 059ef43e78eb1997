"""Statistics of a model that criteria use: weights, gradients, features, contributions."""

from keras_pcp.statistics.statistics import Statistics, needs_data

__all__ = ["Statistics", "needs_data"]

"""What criteria read of a model: weights, gradients, features, contributions."""

from keras_pcp.statistics.statistics import Statistics, needs_data

__all__ = ["Statistics", "needs_data"]

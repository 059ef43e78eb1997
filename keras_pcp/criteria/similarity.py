"""Criteria by how similar the filters of a group are."""

import numpy as np

from keras_pcp.criteria.filters import filters
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics


def distances(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Returns the Euclidean distances between all filters, (num_channels, num_channels).

    Channels that `masked` has removed are NaN columns, so no other channel is redundant because of them.
    """
    matrix = filters(group, statistics.weights)
    norms = np.square(matrix).sum(axis=1)
    squares = norms[:, None] + norms[None, :] - 2 * matrix @ matrix.T
    found = np.sqrt(np.maximum(squares, 0))
    found[:, ~statistics.present[group.name]] = np.nan
    return found


def least_distance(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose filter no other filter resembles: s_c = min over d of ||w_c - w_d||.

    Two equal filters both get 0. Takes a product of the filter matrix with itself; needs only the weights.

    The counterpart of `cosine` that depends on the size of the filters; not from a paper. If several layers make a channel,
    all its filters are compared side by side.
    """
    found = distances(group, statistics)
    np.fill_diagonal(found, np.nan)
    return _least(found)


def cosine(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose filter no other filter is parallel to: s_c = 1 - max over d of |cos(w_c, w_d)|.

    A filter of zeros has no direction and gets 0. Takes a product of the filter matrix with itself; needs only the weights.

    Differs from the paper: there, a threshold on the cosine clusters the filters, and a random one of each cluster stays.
    Here, every channel has its own score, and opposite directions count as the same.

    References:
        Ayinde and Zurada, Building Efficient ConvNets using Redundant Feature Pruning, arXiv 1802.07653.
    """
    matrix = filters(group, statistics.weights)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix = matrix / np.where(norms == 0, 1, norms)
    found = 1 - np.abs(matrix @ matrix.T)
    found[:, ~statistics.present[group.name]] = np.nan
    np.fill_diagonal(found, np.nan)
    return np.where(norms[:, 0] == 0, 0.0, np.maximum(_least(found), 0))


def _least(found: np.ndarray) -> np.ndarray:
    """Returns the least number of each row that is not NaN; 1 if there is none, as in a group of one channel."""
    least = np.where(np.isnan(found), np.inf, found).min(axis=1)
    return np.where(np.isfinite(least), least, 1.0)

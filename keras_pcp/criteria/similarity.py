"""Criteria by how similar the filters of a group are."""

import numpy as np

from keras_pcp.criteria.filters import balanced, filters
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics

_BLOCK = 128  # filters that `orthogonality` leaves out between two updates of its matrix


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


def orthogonality(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps long filters that are close to orthogonal: s_c = distance of w_c from the span of the filters left when it goes.

    Removes one filter after the other, each time the one that is closest to the span of the others that are left. So the
    filters kept span nearly the largest volume that so many of them can, whatever their number: they are long, and as
    orthogonal as can be. Of two equal filters, one gets about 0 and the other a high score; `cosine` gives both 0. If
    several layers make a channel, their filters lie side by side, each layer with the same weight. Takes the inverse of
    the Gram matrix of the filters, with a thousandth of its mean diagonal added to the diagonal.

    From the weights alone, as in Liu et al., Adaptive Channel Pruning for Trainability Protection, PRCV 2023. The paper's
    formula is not public; this one is ours. Channels that `masked` has removed get 0.
    """
    left = np.flatnonzero(statistics.present[group.name])
    matrix = balanced(group, statistics.weights)
    gram = matrix[left] @ matrix[left].T
    inverse = np.linalg.inv(gram + (1e-3 * np.trace(gram) / max(len(left), 1) or 1.0) * np.eye(len(left)))
    scores = np.zeros(len(matrix))
    # 1 / inverse[c, c] is the squared distance of c from the span of the others. To leave out a filter is a step of the
    # Cholesky decomposition of the inverse, with the largest element of the diagonal as its pivot. The steps of a block
    # read only their own rows; what they subtract from the rest of the matrix is one product.
    while len(left):
        diagonal, rows = np.diag(inverse).copy(), np.zeros((min(_BLOCK, len(left)), len(left)))
        for k in range(len(rows)):
            gone = int(np.argmax(diagonal))
            root = np.sqrt(diagonal[gone])
            scores[left[gone]] = 1 / root
            rows[k] = (inverse[gone] - rows[:k, gone] @ rows[:k]) / root
            diagonal -= np.square(rows[k])
            diagonal[gone] = -np.inf
        stay = np.isfinite(diagonal)
        inverse = inverse[np.ix_(stay, stay)] - rows[:, stay].T @ rows[:, stay]
        left = left[stay]
    return scores


def reciprocal(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps filters that are among the nearest of every other filter: s_c = 1 - max over d of rank_d(c) / n.

    Each of the n filters ranks all by distance, itself first, with rank 0. The channels kept are those that all filters
    have in common in their lists of nearest filters, as short as possible. Channels that `masked` has removed get 0.

    Differs from the paper: the filters of several layers lie side by side, each layer with the same weight. The paper
    divides the widths by another ranking; here that is up to the selection.

    References:
        Lin et al., Pruning Networks with Cross-Layer Ranking & k-Reciprocal Nearest Filters, IEEE TNNLS 2022, arXiv
        2202.07190; code: lmbxmu/CLR-RNF.
    """
    matrix = balanced(group, statistics.weights)
    here = np.flatnonzero(statistics.present[group.name])
    squares = np.square(matrix[here]).sum(axis=1)
    distance = squares[:, None] + squares - 2 * matrix[here] @ matrix[here].T
    np.fill_diagonal(distance, -1.0)
    ranks = np.argsort(np.argsort(distance, axis=1, kind="stable"), axis=1, kind="stable")
    scores = np.zeros(len(matrix))
    scores[here] = 1 - ranks.max(axis=0, initial=0) / max(len(here), 1)
    return scores


def _least(found: np.ndarray) -> np.ndarray:
    """Returns the least number of each row that is not NaN; 1 if there is none, as in a group of one channel."""
    least = np.where(np.isnan(found), np.inf, found).min(axis=1)
    return np.where(np.isfinite(least), least, 1.0)

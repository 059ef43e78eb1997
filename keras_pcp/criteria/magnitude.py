"""Criteria by the size of the weights that make a channel."""

import numpy as np

from keras_pcp.criteria.filters import summed
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics


def l1(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose filters have large weights: s_c = sum |w|.

    If several layers make a channel (a residual stage), the sum runs over all of them. Takes milliseconds; needs only the
    weights.

    References:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv 1608.08710.
    """
    return summed(group, statistics.weights, np.abs)


def l2(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose filters have a large Euclidean norm: s_c = sqrt(sum w^2).

    If several layers make a channel, the sum runs over all of them. Takes milliseconds; needs only the weights.

    References:
        He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018, arXiv 1808.06866.
    """
    return np.sqrt(summed(group, statistics.weights, np.square))

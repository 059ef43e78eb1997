"""Criteria by the size of the weights that make a channel, or of all weights that go with it."""

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


def group_l1(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose weights are large in sum: s_c = sum |w| over every weight that would go with channel c.

    These are the filters and biases that make it, scale and offset of its normalization, and what reads it in the next
    layers, also for outputs that are to be cut. Statistics of batch normalization do not count. A weight of a layer that
    both reads and makes the channel counts twice. Takes milliseconds; needs only the weights.

    Differs from the paper: the sum is over |w|, not over w^2, and all layers of a group count alike.

    References:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv 2301.12900: a norm over a whole group of
        coupled weights.
    """
    trained = [s for s in group.slices if not s.part.startswith("moving_")]
    return summed(group, statistics.weights, np.abs, trained)

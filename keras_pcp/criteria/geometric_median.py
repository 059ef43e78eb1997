"""FPGM: the other filters can replace those near the geometric median of the layer."""

import numpy as np

from keras_pcp.criteria.similarity import distances
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics


def fpgm(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose filters are far from the others: s_c = sum over d of ||w_c - w_d||.

    Takes a product of the filter matrix with itself; needs only the weights.

    Differs from the paper: if several layers make a channel (a residual stage), all its filters are compared side by side.
    The paper prunes single layers, and softly, in every epoch.

    References:
        He et al., Filter Pruning via Geometric Median for Deep CNNs Acceleration, CVPR 2019, arXiv 1811.00250.
    """
    return np.nansum(distances(group, statistics), axis=1)

"""Optimal brain damage for whole filters."""

import numpy as np

from keras_pcp.criteria.filters import filters, or_zeros
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data


@needs_data
def obd(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose weights raise the loss most when removed, to second order: s_c = 1/2 sum w^2 E[g^2].

    The sum runs over the kernels of all layers that make the channel. E[g^2] is the mean over the samples of each sample's
    squared gradient (the empirical Fisher information), in place of the diagonal of the Hessian. Takes one backward pass
    per sample; needs data and a compiled model.

    Differs from the paper: the paper removes single weights, and computes second derivatives by a separate backward pass.

    References:
        LeCun, Denker and Solla, Optimal Brain Damage, NIPS 1989. Theis et al., Faster Gaze Prediction with Dense
        Networks and Fisher Pruning, arXiv 1801.05787, for the Fisher information in its place.
    """
    curvature = or_zeros(statistics.squared_gradients, statistics.weights)
    return 0.5 * (np.square(filters(group, statistics.weights)) * filters(group, curvature)).sum(axis=1)

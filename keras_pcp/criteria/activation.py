"""Criteria by how active a channel is."""

import numpy as np

from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data


@needs_data
def mean_activation(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels with large values: s_c = mean of |a| over samples and positions.

    Takes one forward pass; needs data.

    Differs from the paper: the paper takes the mean or the deviation of ReLU's outputs; absolute values also suit other
    activations. The values come from `Statistics.features`.

    References:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017,
        arXiv 1611.06440.
    """
    return np.abs(statistics.features[group.name].reshape(-1, group.num_channels)).mean(axis=0, dtype=float)


@needs_data
def apoz(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels that are rarely zero: s_c = 1 - APoZ_c, the share of values that are not 0.

    Distinguishes channels only if they come out of ReLU. Takes one forward pass; needs data.

    Differs from the paper: higher means keep, so the score is one minus the paper's average percentage of zeros.

    References:
        Hu et al., Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures, 2016,
        arXiv 1607.03250.
    """
    return (statistics.features[group.name].reshape(-1, group.num_channels) != 0).mean(axis=0)

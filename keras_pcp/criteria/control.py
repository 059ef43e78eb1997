"""The baseline that every criterion has to beat."""

import numpy as np

from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics


def random(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels at random: uniform numbers in [0, 1), the same for the same seed, group name and width.

    References:
        Li et al., Revisiting Random Channel Pruning for Neural Network Compression, CVPR 2022, arXiv 2205.05676.
    """
    return np.random.default_rng([statistics.seed, *group.name.encode()]).random(group.num_channels)

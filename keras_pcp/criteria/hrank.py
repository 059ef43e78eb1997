"""HRank: the rank of feature maps."""

import numpy as np

from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data


@needs_data
def hrank(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose feature maps hold much: s_c = mean over the samples of the rank of the map.

    Takes one forward pass and a singular value decomposition for each map; needs data.

    Differs from the paper: maps are taken by `Statistics.features`, for coupled layers where their sum stands. Without
    two axes of space, a map has rank 1 or 0; with three, the first stands against the other two.

    References:
        Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, arXiv 2002.10179.
    """
    maps = np.moveaxis(statistics.features[group.name], -1, 1)
    height = maps.shape[2] if maps.ndim > 2 else 1
    return np.linalg.matrix_rank(maps.reshape(*maps.shape[:2], height, -1)).mean(axis=0)

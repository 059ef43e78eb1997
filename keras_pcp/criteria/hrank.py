"""HRank: the rank of feature maps."""

import numpy as np

from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data


@needs_data
def hrank(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose feature maps hold much information: s_c = mean over the samples of the rank of the map.

    Takes one forward pass and a singular value decomposition for each map; needs data.

    Differs from the paper: the maps come from `Statistics.features`; for coupled layers, that is after their sum. With fewer
    than two spatial axes, a map has rank 1 or 0. With three, the first is the height, and the others together the width.

    References:
        Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, arXiv 2002.10179.
    """
    maps = np.moveaxis(statistics.features[group.name], -1, 1)
    height = maps.shape[2] if maps.ndim > 2 else 1
    return np.linalg.matrix_rank(maps.reshape(*maps.shape[:2], height, -1)).mean(axis=0)

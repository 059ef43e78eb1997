"""ThiNet: removes the channels whose removal changes the next layers' outputs least."""

import numpy as np

from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data


@needs_data
def thinet(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels that a greedy search removes late: s_c = place of c in the order of removal / num_channels.

    The set T of removed channels grows by the one for which || sum over c in T of x_c ||^2 is least, where x_c is what
    channel c adds to the outputs of the layers that read it (`Statistics.contributions`). Channels that add nothing get
    0. Takes one forward pass, and C^2 operations for C channels; needs data.

    Differs from the paper: there, one output channel is drawn for each position; here, all of them count. The search
    continues until all channels are ranked. If several layers read a group, all of them score it together. The paper
    scales the kept channels by least squares afterwards; `keras_pcp.refit` fits whole kernels.

    References:
        Luo, Wu and Lin, ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, ICCV 2017,
        arXiv 1707.06342.
    """
    products = statistics.contributions[group.name]
    score = np.zeros(len(products))
    alone = np.diag(products)
    left = alone > 0
    with_removed = np.zeros(len(products))
    for rank in range(len(products) - np.count_nonzero(left) + 1, len(products) + 1):
        c = np.argmin(np.where(left, alone + 2 * with_removed, np.inf))
        left[c] = False
        with_removed += products[c]
        score[c] = rank / len(products)
    return np.where(statistics.present[group.name], score, -1.0)

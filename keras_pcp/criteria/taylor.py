"""First-order Taylor expansion: the squared change of the loss when a channel is removed."""

from dataclasses import dataclass

import numpy as np

from keras_pcp.criteria.filters import filters, or_zeros
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data
from keras_pcp.support import checks


@needs_data
def taylor(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels whose filters change the loss: s_c = (sum over the filter of g * w)^2.

    g is the mean gradient over the samples. The sum runs over the kernels of all layers that make the channel. Takes one
    backward pass over the samples in batches; needs data and a compiled model.

    Differs from the paper: there, the square is averaged over mini-batches of training steps, with momentum over the
    rounds of pruning. Here, it is computed once, with no training in between. Biases are left out.

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771: the
        contribution of a set of weights, with the sum inside the square.
    """
    gradients = or_zeros(statistics.gradients, statistics.weights)
    return np.square((filters(group, statistics.weights) * filters(group, gradients)).sum(axis=1))


@needs_data
@dataclass(frozen=True)
class TaylorGate:
    """Keeps channels that the loss depends on: the mean over mini-batches of (dL/dz_c)^2 for a gate z_c = 1.

    dL/dz_c is the mean of `Statistics.gate_gradients` over a mini-batch; sample weights apply to both means. With
    `batch_size=1` the score is that of `group_fisher`, divided by the number of samples. Takes one backward pass per
    sample; needs data and a compiled model.

    Differs from the paper: there, the gate follows batch normalization. Here, it is where the channel is read, which is the
    same if only ReLU and pooling lie in between. Channels joined by sums share one gate; the paper divides by the number of
    joined layers. There is no momentum over rounds.

    Attributes:
        batch_size: samples in a mini-batch; the last one may be smaller.

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771: Taylor-FO-BN.
    """

    batch_size: int = 32

    def __post_init__(self):
        checks.count("batch_size", self.batch_size)

    def __call__(self, group: ChannelGroup, statistics: Statistics) -> np.ndarray:
        gates = statistics.gate_gradients[group.name]
        total = np.zeros(group.num_channels)
        starts = range(0, len(gates), self.batch_size)
        for rows in (slice(i, i + self.batch_size) for i in starts):
            weights = statistics.sample_weights[rows]
            if weights.any():
                total += weights.mean() * np.square(weights @ gates[rows] / weights.sum())
        return total / len(starts)

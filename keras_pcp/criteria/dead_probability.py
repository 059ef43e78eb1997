"""Operation-aware soft channel pruning: how likely normalization and ReLU switch a channel off."""

import math

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.channels import FOLLOW, ChannelGroup
from keras_pcp.statistics import Statistics

_PHI = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)), otypes=[float])


def dead_probability(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels that are likely to pass ReLU: s_c = 1 - Phi(-beta_c / |gamma_c|).

    After batch normalization, a value is about normally distributed with mean beta and deviation |gamma|, so this is the
    probability that it is positive. If a channel has several normalizations, the largest probability counts. A
    normalization without an offset has beta = 0, and one without a scale has gamma = 1. Takes milliseconds; needs only the
    weights.

    Differs from the paper: there, the probability controls soft masks that are learned together with the weights; here, it
    is the score itself. A sum between normalization and ReLU (a residual block) is ignored.

    Raises:
        InvalidArgumentError: a channel of the group has no normalization with a scale or an offset.

    References:
        Kang and Han, Operation-Aware Soft Channel Pruning using Differentiable Masks, ICML 2020, arXiv 2007.03938.
    """
    score = np.full(group.num_channels, -1.0)
    layers: dict[str, dict] = {}
    for s in (*group.slices_of(FOLLOW, "scale"), *group.slices_of(FOLLOW, "offset")):
        layers.setdefault(s.layer, {})[s.part] = s
    for parts in layers.values():
        scale, offset = (_values(statistics, parts.get(k)) for k in ("scale", "offset"))
        gamma = np.abs(1.0 if scale is None else scale)
        beta = 0.0 if offset is None else offset
        safe = np.where(gamma == 0, 1, gamma)
        alive = np.where(gamma == 0, np.asarray(beta) > 0, _PHI(beta / safe))
        np.maximum.at(score, next(iter(parts.values())).channels, alive)
    if (score < 0).any():
        raise InvalidArgumentError(
            f"criterion 'dead_probability' needs a normalization layer with a scale or an offset on every channel of "
            f"group {group.name!r}; use 'l1', or freeze the layer"
        )
    return score


def _values(statistics, s):
    """Returns one number for each position of a slice along the channels (the largest, if it holds several)."""
    if s is None:
        return None
    value = np.moveaxis(statistics.weights[s.weight], s.axis, 0)[s.positions].astype(float)
    return value.reshape(len(s.positions), -1).max(axis=1)

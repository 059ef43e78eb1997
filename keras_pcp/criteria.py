"""Importance scores of channels: one function per criterion, higher = keep.

A criterion is any callable `(group, values, seed) -> float array (group.num_channels,)`, where `values[i]` is the
value of weight i of the model as a NumPy array. Scores are compared within a group, and across groups by selections
of scope "global".
"""

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_pcp.channels import FOLLOW, PRODUCE, ChannelGraph, ChannelGroup, WeightSlice
from keras_pcp.errors import InvalidArgumentError

Criterion = Callable[[ChannelGroup, Sequence[np.ndarray], int], np.ndarray]


def l1(group: ChannelGroup, values: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Sum of the absolute weights of the filters that make the channel.

    For channels made by several layers (a residual stage) the sum runs over all of them.

    References:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv 1608.08710: s_i = sum |w_i|.
    """
    return _sum_over_filters(group, values, np.abs)


def l2(group: ChannelGroup, values: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Euclidean norm of the filters that make the channel: sqrt(sum w^2)."""
    return np.sqrt(_sum_over_filters(group, values, np.square))


def bn_scale(group: ChannelGroup, values: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Absolute scale (gamma) of the batch normalizations on the channel; summed if there are several.

    References:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv 1708.06519.

    Raises:
        InvalidArgumentError: no normalization with a scale stands on the group.
    """
    scales = group.slices_of(FOLLOW, "scale")
    if not scales:
        raise InvalidArgumentError(
            f"criterion 'bn_scale' needs a normalization layer with a scale on group {group.name!r}, which has none; "
            "use 'l1', or freeze the layer"
        )
    return _sum_over(group, scales, values, np.abs)


def random(group: ChannelGroup, values: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Uniform random numbers in [0, 1), the same for the same seed, group name and width: the control."""
    return np.random.default_rng([seed, *group.name.encode()]).random(group.num_channels)


BY_NAME: dict[str, Criterion] = {"l1": l1, "l2": l2, "bn_scale": bn_scale, "random": random}


def get(criterion: str | Criterion) -> Criterion:
    """Returns the criterion for a name, or the callable itself."""
    if callable(criterion):
        return criterion
    if criterion not in BY_NAME:
        raise InvalidArgumentError(f"criterion must be a callable or one of {sorted(BY_NAME)}, got {criterion!r}")
    return BY_NAME[criterion]


def score_channels(
    model: keras.Model, graph: ChannelGraph, criterion: str | Criterion = "l1", *, seed: int = 0
) -> Mapping[str, np.ndarray]:
    """Scores every channel of every group; higher = keep.

    Args:
        model: the model that `graph` was built from.
        graph: its channel graph.
        criterion: `"l1"`, `"l2"`, `"bn_scale"`, `"random"`, or a callable (see `keras_pcp.criteria`).
        seed: for random criteria.

    Returns:
        {group name: float array (num_channels,)}.

    Raises:
        InvalidArgumentError: the criterion is unknown, or returns something else than one finite number per channel.
    """
    function = get(criterion)
    values = [np.asarray(w, "float32") if w.dtype == "bfloat16" else w.numpy() for w in model.weights]
    scores = {}
    for group in graph:
        score = np.asarray(function(group, values, seed), float)
        if score.shape != (group.num_channels,) or not np.isfinite(score).all():
            raise InvalidArgumentError(
                f"criterion {criterion!r} must return {group.num_channels} finite scores for group {group.name!r}, "
                f"got shape {score.shape}" + ("" if np.isfinite(score).all() else " with NaN or infinite values")
            )
        scores[group.name] = score
    return scores


def _sum_over_filters(group: ChannelGroup, values: Sequence[np.ndarray], function: Callable) -> np.ndarray:
    kernels = group.slices_of(PRODUCE, "kernel") + group.slices_of(FOLLOW, "depthwise")
    return _sum_over(group, kernels, values, function)


def _sum_over(
    group: ChannelGroup, slices: Sequence[WeightSlice], values: Sequence[np.ndarray], function: Callable
) -> np.ndarray:
    total = np.zeros(group.num_channels)
    for s in slices:
        value = function(values[s.weight].astype("float64"))
        per_position = value.sum(axis=tuple(a for a in range(value.ndim) if a != s.axis))
        np.add.at(total, s.channels, per_position[s.positions])
    return total

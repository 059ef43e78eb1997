"""The filters of a group as a matrix with one row per channel."""

from collections.abc import Callable, Sequence

import numpy as np

from keras_pcp.graph.channels import FOLLOW, PRODUCE, ChannelGroup, WeightSlice


def kernels(group: ChannelGroup) -> tuple[WeightSlice, ...]:
    """Returns the slices of the kernels that make the channels of a group."""
    return group.slices_of(PRODUCE, "kernel") + group.slices_of(FOLLOW, "depthwise")


def summed(
    group: ChannelGroup, arrays: Sequence[np.ndarray], function: Callable, slices: Sequence[WeightSlice] | None = None
) -> np.ndarray:
    """Applies a function to the elements of each channel's filters, or of other slices, and returns the sums.

    Their matrix is not made.
    """
    total = np.zeros(group.num_channels)
    for s in kernels(group) if slices is None else slices:
        array = arrays[s.weight]
        value = function(array if array.itemsize >= 4 else array.astype("float32"))
        per_position = value.sum(axis=tuple(a for a in range(value.ndim) if a != s.axis), dtype="float64")
        np.add.at(total, s.channels, per_position[s.positions])
    return total


def filters(group: ChannelGroup, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the part of some arrays that belongs to the filters of each channel, all layers side by side.

    Args:
        group: the channels.
        arrays: one array for each weight of the model: its value, or its gradient.

    Returns:
        float64 array (num_channels, n). If a layer makes a channel less often than others, zeros fill up its row.
    """
    return rows(group, kernels(group), arrays)


def balanced(group: ChannelGroup, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the filters of all layers side by side as `filters` does, scaled so that every layer has the norm 1."""
    parts = [rows(group, [s], arrays) for s in kernels(group)]
    nothing = np.zeros((group.num_channels, 0))
    return np.concatenate([nothing, *(part / (np.linalg.norm(part) or 1.0) for part in parts)], axis=1)


def or_zeros(gradients: Sequence[np.ndarray | None], weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns gradients with zeros for weights that have none."""
    return [np.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]


def rows(group: ChannelGroup, slices: Sequence[WeightSlice], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the values of each channel in some weight slices, side by side: float64 array (num_channels, n)."""
    parts = [np.zeros((group.num_channels, 0))]
    for s in slices:
        value = np.moveaxis(arrays[s.weight], s.axis, 0)[s.positions].reshape(len(s.positions), -1)
        order = np.argsort(s.channels, kind="stable")
        counts = np.bincount(s.channels, minlength=group.num_channels)
        copy = np.empty(len(order), int)
        copy[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        part = np.zeros((group.num_channels, counts.max(), value.shape[1]))
        part[s.channels, copy] = value
        parts.append(part.reshape(group.num_channels, -1))
    return np.concatenate(parts, axis=1)

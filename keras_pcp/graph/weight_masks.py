"""The positions of weights that a selection keeps. Masking, cutting and narrowing use them."""

from collections.abc import Mapping
from functools import reduce

import numpy as np

from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import CONSUME
from keras_pcp.graph.selection import Selection

Masks = Mapping[int, Mapping[int, np.ndarray]]


def weight_masks(
    graph: ChannelGraph, selection: Selection, role: str | None = None
) -> dict[int, dict[int, np.ndarray]]:
    """Returns {weight index: {axis: boolean array, True = keep}} for the weights that lose positions.

    If `role` is given, only slices with that role count.
    """
    masks: dict[int, dict[int, np.ndarray]] = {}
    for name in selection.removed():
        keep = selection.keep[name]
        for s in (s for s in graph[name].slices if role in (None, s.role)):
            axes = masks.setdefault(s.weight, {})
            if s.axis not in axes:
                axes[s.axis] = np.ones(graph.weights[s.weight].shape[s.axis].size, bool)
            axes[s.axis][s.positions] = keep[s.channels]
    return masks


def consumer_masks(graph: ChannelGraph, selection: Selection) -> dict[int, np.ndarray]:
    """Returns {weight index: boolean array that broadcasts to the weight}, False where a removed channel is read."""
    masks = {}
    for weight, axes in weight_masks(graph, selection, CONSUME).items():
        rank = len(graph.weights[weight].shape)
        along = [keep.reshape([-1 if a == axis else 1 for a in range(rank)]) for axis, keep in axes.items()]
        masks[weight] = reduce(np.logical_and, along)
    return masks

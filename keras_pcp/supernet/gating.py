"""Widths as tensors: a network computes as if narrower, without surgery and without being traced again.

The channels of a group have an order; a width keeps the first ones. The weights that read the other channels are
multiplied by 0. So one traced function serves every sub-net, and gradients reach what a sub-net uses.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import CONSUME
from keras_pcp.graph.grouping import Places
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import removal_order


@dataclass(frozen=True, eq=False)
class Axis:
    """What lies along an axis: for each position the number of its channel among all groups, and of its group; -1: fixed."""

    axis: int
    channel: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, gating: "Gating", axis: int, size: int, places: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> "Axis":
        """Returns an axis of a size, given (group, channels, positions) of all that is not fixed."""
        channel, group = np.full(size, -1), np.full(size, -1)
        for name, channels, positions in places:
            number = gating.names.index(name)
            channel[positions], group[positions] = gating.starts[number] + channels, number
        return cls(axis, channel, group)

    def mask(self, widths: Any, ranks: Any, rank: int) -> Any:
        """Returns a boolean tensor that broadcasts to a tensor of a rank, False where a channel is left out."""
        place = ops.take(ranks, np.maximum(self.channel, 0))
        width = ops.take(ops.cast(widths, "int32"), np.maximum(self.group, 0))
        keep = ops.logical_or(self.channel < 0, place < width)
        return ops.reshape(keep, [-1 if i == self.axis else 1 for i in range(rank)])


@dataclass(frozen=True, eq=False)
class Gating:
    """The groups of a graph, numbered.

    Attributes:
        names: names of the groups. Widths are int tensors (groups,) in this order.
        sizes: number of channels of each group.
        starts: number of the first channel of each group, if the channels of all groups are counted one after the other.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, graph: ChannelGraph) -> "Gating":
        """Numbers the groups of a graph."""
        sizes = np.array([g.num_channels for g in graph], int)
        return cls(tuple(graph.groups), sizes, np.cumsum(sizes) - sizes)

    def weights(self, graph: ChannelGraph) -> list[tuple[int, Axis]]:
        """Returns (number of a weight, axis) for all that reads channels."""
        places: dict[tuple[int, int], list] = {}
        for group in graph:
            for s in group.slices_of(CONSUME):
                places.setdefault((s.weight, s.axis), []).append((group.name, s.channels, s.positions))
        return [(w, Axis.of(self, a, graph.weights[w].shape[a].size, found)) for (w, a), found in places.items()]

    def tensors(self, places: Mapping[int, Places]) -> dict[int, Axis]:
        """Returns {number of a tensor: its axis of channels}."""
        return {i: Axis.of(self, p.axis, p.size, p.places) for i, p in places.items()}

    def ranks(self, graph: ChannelGraph, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the place of every channel in the order of its group; those that go last have 0."""
        found = []
        for group in graph:
            rank = np.empty(group.num_channels, "int32")
            rank[removal_order(scores[group.name])[::-1]] = np.arange(group.num_channels)
            found.append(rank)
        return np.concatenate(found) if found else np.zeros(0, "int32")

    def are_ranks(self, ranks: np.ndarray) -> bool:
        """Whether each channel has a place in its group."""
        each = zip(self.starts, self.sizes, strict=True)
        return all(np.array_equal(np.sort(ranks[start : start + size]), np.arange(size)) for start, size in each)

    def selection(self, widths: np.ndarray, ranks: np.ndarray) -> Selection:
        """Returns the selection that keeps the first channels of each group."""
        each = zip(self.names, self.starts, self.sizes, widths, strict=True)
        return Selection({name: ranks[start : start + size] < width for name, start, size, width in each})

"""What stages may be like: the groups of each stage, its options, and what they cost."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import Extent
from keras_pcp.graph.segments import Segment
from keras_pcp.graph.trace import Trace
from keras_pcp.supernet.gating import Axis, Gating


@dataclass(frozen=True, eq=False)
class StagePart:
    """The part of a graph that belongs to a stage.

    Attributes:
        groups: numbers of the groups that its layers make or read, in order.
        weights: numbers of the weights of its layers.
        graph: the graph with only the weights and multiply-accumulates of the stage.
    """

    groups: tuple[int, ...]
    weights: frozenset[int]
    graph: ChannelGraph


def parts_of(
    graph: ChannelGraph,
    trace: Trace,
    names: Mapping[int, str],
    stages: Sequence[Segment],
    gating: Gating,
    channels: Mapping[int, Axis],
) -> list[StagePart]:
    """Divides a graph into stages. A layer that several stages call costs in the first one.

    Args:
        graph, trace: of the model.
        names: {`id` of an operation: its name in the graph}.
        stages: the stages.
        gating: the groups, numbered.
        channels: {number of a tensor: axis of its channels}.
    """
    owner: dict[str, int] = {}
    called: list[set[str]] = []
    for number, stage in enumerate(stages):
        operations = [call.operation for call in trace.calls[stage.start : stage.stop] if call.operation is not None]
        called.append({names[id(operation)] for operation in operations})
        for name in called[-1]:
            owner.setdefault(name, number)
    found = []
    for number, stage in enumerate(stages):
        own = [info for info in graph.weights if owner.get(info.layer, 0) == number]
        terms = [term for term in graph.macs if owner.get(term.layer, 0) == number]
        pieces = [e.pieces for info in own for e in info.shape] + [e.pieces for term in terms for e in term.extents]
        groups = {gating.names.index(name) for piece in pieces for name, _ in piece}
        groups |= {i for i, g in enumerate(graph) if any(s.layer in called[number] for s in g.slices)}
        for tensor in stage.outputs:
            groups |= set(np.unique(channels[tensor].group).tolist()) - {-1} if tensor in channels else set()
        weights = frozenset(i for i, info in enumerate(graph.weights) if info.layer in called[number])
        part = replace(graph, weights=tuple(own), macs=tuple(terms))
        found.append(StagePart(tuple(sorted(groups)), weights, part))
    return found


def tied_groups(parts: Sequence[StagePart]) -> list[int]:
    """Returns the groups that several stages have."""
    counts = np.bincount([group for part in parts for group in part.groups])
    return np.flatnonzero(counts > 1).tolist()


def distinct_levels(levels: np.ndarray) -> np.ndarray:
    """Returns for each level of each group the first level of the same width, ints (groups, levels).

    Example:
        >>> distinct_levels(np.array([[1, 1, 2, 4], [2, 4, 6, 8]])).tolist()
        [[0, 0, 2, 3], [0, 1, 2, 3]]
    """
    return np.array([np.searchsorted(row, row) for row in levels], int).reshape(levels.shape)


def count_options(first: np.ndarray) -> int:
    """Returns in how many ways groups can have a width, given their rows of `distinct_levels`."""
    return math.prod(len(np.unique(row)) for row in first)


def options(part: StagePart, tied: Sequence[int], first: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Returns what a stage may be like, as levels of its groups, ints (options, groups).

    All possibilities, if they are at most `most`. Otherwise a draw: for each assignment of levels to the groups that other
    stages share, the narrowest others, and random ones. If there are too many assignments, those that give all shared groups
    the same level, so that other stages have them, too.

    Args:
        part: the stage.
        tied: groups that other stages share.
        first: `distinct_levels` of the groups of the stage.
        most: the most options.
        rng: for the draw.
    """
    (count, num_levels), every = first.shape, np.arange(len(first))
    if count_options(first) <= most:
        return _all_levels(first)
    shared = [part.groups.index(group) for group in part.groups if group in tied]
    free = [i for i in range(count) if i not in shared]
    assignments = _assignments(first[shared], max(num_levels, most // 4))
    found: dict[tuple, None] = {}
    for row in range(most):
        levels = np.empty(count, int)
        levels[shared] = assignments[row % len(assignments)]
        # A largest level for all groups, so that narrow stages are drawn as often as wide ones. First the narrowest.
        levels[free] = rng.integers(0, rng.integers(1, num_levels + 1), len(free)) if row >= len(assignments) else 0
        found[tuple(first[every, levels].tolist())] = None
    return np.array(list(found), int)


def neighbours(levels: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Returns the levels that differ in the width of one group, the next smaller or larger one, ints (neighbours, groups).

    Example:
        >>> neighbours(np.array([0, 2]), np.array([[0, 0, 2], [0, 1, 2]])).tolist()
        [[2, 2], [0, 1]]
    """
    found = []
    for group, row in enumerate(first):
        known = np.unique(row)
        place = int(np.searchsorted(known, levels[group]))
        for other in (place - 1, place + 1):
            if 0 <= other < len(known):
                found.append([*levels[:group], known[other], *levels[group + 1 :]])
    return np.array(found, int).reshape(-1, len(levels))


def _assignments(first: np.ndarray, most: int) -> np.ndarray:
    """Returns levels of shared groups: all, or, if these are too many, the same level for all of them."""
    count, num_levels = first.shape
    if count_options(first) <= most:
        return _all_levels(first)
    return first[np.arange(count), np.repeat(np.arange(num_levels)[:, None], count, axis=1)]


def _all_levels(first: np.ndarray) -> np.ndarray:
    every = list(itertools.product(*(np.unique(row).tolist() for row in first)))
    return np.array(every, int).reshape(len(every), len(first))


def costs(part: StagePart, gating: Gating, ranks: np.ndarray, widths: np.ndarray, limited: Sequence[str]) -> np.ndarray:
    """Returns what a stage costs, (options, limits), for widths of its groups, (options, groups of the stage).

    The same numbers as `cost_of`, for all options at once.
    """

    def size(extent: Extent) -> np.ndarray:
        left = np.full(len(widths), extent.size)
        for name, channels in extent.pieces:
            number = gating.names.index(name)
            places = np.sort(ranks[gating.starts[number] + channels])
            left -= len(places) - np.searchsorted(places, widths[:, part.groups.index(number)])
        return left

    total = {name: np.zeros(len(widths)) for name in ("macs", "params", "bytes")}
    for info in part.graph.weights:
        if info.layer:
            count = math.prod(map(size, info.shape))
            total["params"] += count
            total["bytes"] += count * info.itemsize
    for term in part.graph.macs:
        total["macs"] += term.factor * math.prod(map(size, term.extents))
    return np.stack([total[name] for name in limited], axis=1)

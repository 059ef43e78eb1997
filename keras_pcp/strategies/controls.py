"""Controls: simpler ways to choose widths, run by the same code on the same data as what they are compared with.

Each does its work in `update` as `Progressive` does, so that recovery, data and costs are the same. NetAdapt (Yang et
al., ECCV 2018, arXiv 1804.03230) without the short training of every candidate is `Progressive(groups_per_round=1,
step=0.025)`: its first step, kept constant here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from keras_pcp.channels import ChannelGraph, Selection
from keras_pcp.cost import check_reachable, count_cost
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.selection import holds, lowest_removed, select_by_cost, select_by_ratio, smallest
from keras_pcp.strategies.state import Observation, Round, State, nothing_removed


@dataclass(frozen=True)
class OneShot:
    """Prunes everything at once: all channels of the model ranked together, or the same fraction of every group.

    Attributes:
        scope: `"global"` or `"local"` (uniform), as in `select_by_cost`.
        samples, recalibrate, seed: as in `Progressive`.
    """

    scope: str = "local"
    samples: int | None = 1024
    recalibrate: bool = True
    seed: int = 0

    def init(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> State:
        """Returns the state before the only round."""
        return _start(graph, bounds)

    def rounds_needed(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> int:
        """Returns 1."""
        return 1

    def update(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float], target: float
    ) -> State:
        """Prunes to the bounds, whatever the target."""
        selection = select_by_cost(graph, observation.scores()[0], scope=self.scope, **_limits(bounds))
        return _after(state, observation, graph, selection)


@dataclass(frozen=True)
class RandomWidths:
    """Draws random widths that just meet the bounds; the criterion says which channels stay; keeps the best draw.

    Attributes:
        draws: number of drawn configurations, which are compared on the validation samples before any recovery.
        samples, recalibrate, seed: as in `Progressive`.

    References:
        Li et al., Revisiting Random Channel Pruning for Neural Network Compression, CVPR 2022. Its text is not public;
        the distribution (keep a fraction u^t of every group, u uniform in (0, 1), t as the bounds ask) is ours.
    """

    draws: int = 10
    samples: int | None = 1024
    recalibrate: bool = True
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.draws, int) or self.draws < 1:
            raise InvalidArgumentError(f"draws must be an int of at least 1, got {self.draws!r}")

    def init(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> State:
        """Returns the state before the only round."""
        return _start(graph, bounds)

    def rounds_needed(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> int:
        """Returns 1."""
        return 1

    def update(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float], target: float
    ) -> State:
        """Prunes to the bounds, whatever the target."""
        rng, scores = np.random.default_rng(self.seed), observation.scores()[0]
        drawn = [_meeting(graph, scores, bounds, rng) for _ in range(self.draws)]
        found = [observation.evaluate(selection) for selection in drawn] if self.draws > 1 else [None]
        best = max(range(self.draws), key=lambda i: (found[i].metric, -found[i].loss)) if self.draws > 1 else 0
        return _after(state, observation, graph, drawn[best])


@dataclass(frozen=True)
class LayerByLayer:
    """Visits every group once, in the order of the model, and prunes the same fraction of each: what PCP argues against.

    One round visits one group, with scores of the model as it is then, so that training may go on in between.

    Attributes:
        samples, recalibrate, seed: as in `Progressive`.
    """

    samples: int | None = 1024
    recalibrate: bool = True
    seed: int = 0

    def init(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> State:
        """Returns the state before the first group is visited."""
        return _start(graph, bounds)

    def rounds_needed(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> int:
        """Returns the number of groups."""
        return len(graph)

    def update(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float], target: float
    ) -> State:
        """Prunes the next group that loses any channels."""
        nothing = {g.name: np.zeros(g.num_channels) for g in graph}
        final = select_by_cost(graph, nothing, scope="local", **_limits(bounds))
        names = [name for name in graph.groups if name in final.removed() and state.selection.keep[name].all()]
        if not names:
            return state
        name, scores = names[0], observation.scores()[0]
        mask = lowest_removed(graph[name], scores[name], len(final.removed()[name]))
        return _after(state, observation, graph, Selection({**state.selection.keep, name: mask}))


def _start(graph: ChannelGraph, bounds: Mapping[str, float]) -> State:
    check_reachable(graph, smallest(graph), bounds)
    return State(nothing_removed(graph))


def _limits(bounds: Mapping[str, float]) -> dict[str, int]:
    return {f"max_{name}": int(bound) for name, bound in bounds.items()}


def _meeting(
    graph: ChannelGraph, scores: Mapping[str, np.ndarray], bounds: Mapping[str, float], rng: np.random.Generator
) -> Selection:
    """Draws one configuration: by bisection the least t for which the bounds hold."""
    shares = {name: rng.uniform(0.0, 1.0) for name in graph.groups}

    def select(t: float) -> Selection:
        return select_by_ratio(graph, scores, {n: min(1 - u**t, 1 - 1e-9) for n, u in shares.items()}, scope="local")

    return _least(select, lambda selection: holds(graph, selection, bounds))


def _least(select: Callable[[float], Selection], good: Callable[[Selection], bool]) -> Selection:
    low, high = 0.0, 1.0
    while not good(select(high)):
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if good(select(middle)) else (middle, high)
    return select(high)


def _after(state: State, observation: Observation, graph: ChannelGraph, selection: Selection) -> State:
    """Records a round that prunes to `selection` without attempts."""
    cost = count_cost(graph, selection)
    chosen = tuple(n for n, mask in selection.keep.items() if (mask != state.selection.keep[n]).any())
    widths = {name: int(mask.sum()) for name, mask in selection.keep.items()}
    done = Round(observation.evaluate(state.selection), (), chosen, cost.macs, cost.params, widths)
    return replace(state, selection=selection, rounds=(*state.rounds, done))

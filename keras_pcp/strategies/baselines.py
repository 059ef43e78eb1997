"""Controls: simpler ways to choose widths, run by the same code on the same data as what they are compared with.

They stand in its place: `ProgressivePruning(max_macs=0.5, validation_data=..., strategy=OneShot(scope="global"))`.
Recovery, data and costs are those of `Progressive`. NetAdapt (Yang et al., ECCV 2018, arXiv 1804.03230) without the short
training of every candidate is `Progressive(groups_per_round=1, step=0.025)`: its first step, kept constant here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.cost import cost_of
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import lowest_removed, smallest
from keras_pcp.select.budget import check_reachable, holds
from keras_pcp.select.select import SCOPES, select_by_cost, select_by_ratio
from keras_pcp.strategies.rounds import Observation, Round, State, check_options, nothing_removed
from keras_pcp.support import checks


@dataclass(frozen=True, kw_only=True)
class _Control(ABC):
    """What all controls share: rounds without attempts, each of which prunes to `chosen`."""

    one_criterion: ClassVar[bool] = True

    samples: int | None = 1024
    reestimate_batch_norm: bool = True
    seed: int = 0

    def __post_init__(self):
        check_options(self)

    def init(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> State:
        """Returns the state before the first round; raises LimitError if the bounds cannot be reached."""
        check_reachable(graph, smallest(graph), bounds)
        return State(nothing_removed(graph))

    def rounds_needed(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> int:
        """Returns the number of rounds: one, unless a control says otherwise."""
        return 1

    def update(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float], target: float
    ) -> State:
        """Runs one round, whatever the target."""
        selection = self.chosen(state, observation, graph, bounds)
        cost = cost_of(graph, selection)
        groups = tuple(n for n, mask in selection.keep.items() if (mask != state.selection.keep[n]).any())
        widths = {name: int(mask.sum()) for name, mask in selection.keep.items()}
        done = Round(observation.evaluate(state.selection), (), groups, cost.macs, cost.params, widths)
        return replace(state, selection=selection, rounds=(*state.rounds, done))

    @abstractmethod
    def chosen(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float]
    ) -> Selection:
        """Returns what is left after the round."""


@dataclass(frozen=True, kw_only=True)
class OneShot(_Control):
    """Prunes everything at once: all channels of the model ranked together, or the same fraction of every group.

    Attributes:
        scope: `"global"` or `"local"` (uniform), as in `select_by_cost`.
        samples, reestimate_batch_norm, seed: as in `Progressive`.
    """

    scope: str = "local"

    def __post_init__(self):
        super().__post_init__()
        checks.choice("scope", self.scope, SCOPES)

    def chosen(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float]
    ) -> Selection:
        """Returns the selection that just meets the bounds."""
        return select_by_cost(graph, observation.scores()[0], scope=self.scope, **_limits(bounds))


@dataclass(frozen=True, kw_only=True)
class RandomWidths(_Control):
    """Draws random widths that just meet the bounds; the criterion says which channels stay; keeps the best draw.

    Attributes:
        draws: at least 1: number of drawn configurations, which are compared on the validation samples before any recovery.
        samples, reestimate_batch_norm, seed: as in `Progressive`.

    References:
        Li et al., Revisiting Random Channel Pruning for Neural Network Compression, CVPR 2022. Its text is not public;
        the distribution (keep a fraction u^t of every group, u uniform in (0, 1), t as the bounds ask) is ours.
    """

    draws: int = 10

    def __post_init__(self):
        super().__post_init__()
        checks.count("draws", self.draws)

    def chosen(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float]
    ) -> Selection:
        """Returns the draw with the best metric."""
        rng, scores = np.random.default_rng(self.seed), observation.scores()[0]
        drawn = [_meeting(graph, scores, bounds, rng) for _ in range(self.draws)]
        found = [observation.evaluate(selection) for selection in drawn]
        return drawn[max(range(self.draws), key=lambda i: (found[i].metric, -found[i].loss))]


@dataclass(frozen=True, kw_only=True)
class LayerByLayer(_Control):
    """Visits every group once, in the order of the model, and prunes the same fraction of each: what PCP argues against.

    One round visits one group, with scores of the model as it is then, so that training may go on in between.

    Attributes:
        samples, reestimate_batch_norm, seed: as in `Progressive`.
    """

    def rounds_needed(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> int:
        """Returns the number of groups."""
        return len(graph)

    def chosen(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float]
    ) -> Selection:
        """Prunes the next group that loses any channels."""
        nothing = {g.name: np.zeros(g.num_channels) for g in graph}
        final = select_by_cost(graph, nothing, scope="local", **_limits(bounds)).removed()
        name = next((n for n in final if state.selection.keep[n].all()), None)
        if name is None:
            return state.selection
        mask = lowest_removed(graph[name], observation.scores()[0][name], len(final[name]))
        return Selection({**state.selection.keep, name: mask})


def _limits(bounds: Mapping[str, float]) -> dict[str, int]:
    return {f"max_{name}": int(bound) for name, bound in bounds.items()}


def _meeting(
    graph: ChannelGraph, scores: Mapping[str, np.ndarray], bounds: Mapping[str, float], rng: np.random.Generator
) -> Selection:
    """Draws one configuration: by bisection the least t for which the bounds hold."""
    shares = {name: rng.uniform(0.0, 1.0) for name in graph.groups}

    def select(t: float) -> Selection:
        return select_by_ratio(graph, scores, {n: min(1 - u**t, 1 - 1e-9) for n, u in shares.items()}, scope="local")

    check_reachable(graph, select(np.inf), bounds)  # what stays may cost more than the cheapest channels
    return _least(select, lambda selection: holds(graph, selection, bounds))


def _least(select: Callable[[float], Selection], good: Callable[[Selection], bool]) -> Selection:
    low, high = 0.0, 1.0
    while not good(select(high)):
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if good(select(middle)) else (middle, high)
    return select(high)

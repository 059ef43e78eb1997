"""Controls: simpler ways to choose widths, to compare `Progressive` with.

They take its place in the callback: `Pruning(OneShot(scope="global"), max_macs=0.5, validation_data=...)`. Recovery,
data and costs stay the same. `Progressive(groups_per_round=1, step=0.025)` is NetAdapt (Yang et al., ECCV 2018, arXiv
1804.03230) without the short training of every candidate, and with its first step size throughout.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import check_widths, lowest_removed, smallest
from keras_pcp.select.problem import Problem
from keras_pcp.select.select import SCOPES, Scope, just_enough, select_by_ratio
from keras_pcp.strategies.protocol import Action, Observation, Pace, Strategy, stuck
from keras_pcp.support import checks


class _Control(Strategy):
    """Base class of the controls: prunes in rounds without attempts, each time to `chosen`."""

    def init(self, problem: Problem) -> None:
        """Raises LimitError if the limits cannot be reached. The state is empty."""
        problem.check_reachable(smallest(problem.graph))

    def update(self, problem: Problem, state: None, seen: Observation) -> tuple[None, Action | None]:
        """Runs one round if one is due."""
        pace = Pace.of(self, problem, seen)
        if not pace.is_due(problem.progress(seen.kept), seen):
            return state, None
        keep = self.chosen(problem, seen)
        more = pace.is_due(problem.progress(keep), seen)
        return state, Action(keep, more=more, before=seen.evaluate(seen.kept))

    @abstractmethod
    def chosen(self, problem: Problem, seen: Observation) -> Selection:
        """Returns the selection that is left after the round."""


@dataclass(frozen=True, kw_only=True)
class OneShot(_Control):
    """Prunes in one step: the lowest channels of the whole model, or the same fraction of every group.

    Attributes:
        scope: `"global"` (all channels are ranked together), `"local"` (uniform) or `"threshold"`, as in
            `select_by_cost`.
        min_channels: channels that every group keeps at least; or {group name: channels}.
        multiple_of: widths are rounded up to a multiple of this number; or {group name: multiple}.
    """

    scope: Scope = "local"
    min_channels: int | Mapping[str, int] = 1
    multiple_of: int | Mapping[str, int] = 1

    def __post_init__(self):
        checks.choice("scope", self.scope, SCOPES)
        check_widths(self.min_channels, self.multiple_of)

    def init(self, problem: Problem) -> None:
        """Raises LimitError if the limits cannot be reached. The state is empty."""
        check_widths(self.min_channels, self.multiple_of, problem.graph)
        problem.check_reachable(smallest(problem.graph, self.min_channels, self.multiple_of))

    def chosen(self, problem: Problem, seen: Observation) -> Selection:
        """Returns the selection that just meets the limits."""
        return just_enough(
            problem,
            seen.scores(),
            scope=self.scope,
            min_channels=self.min_channels,
            multiple_of=self.multiple_of,
        )


@dataclass(frozen=True, kw_only=True)
class RandomWidths(_Control):
    """Draws random widths that just meet the limits, and keeps the best draw. The criterion decides which channels
    stay.

    Attributes:
        draws: number of draws, at least 1. They are compared on the validation samples before any recovery.

    References:
        Li et al., Revisiting Random Channel Pruning for Neural Network Compression, CVPR 2022. Its text is not public.
        The distribution is ours: a fraction u^t of every group is kept, with u uniform in (0, 1) and t set by the
        limits.
    """

    draws: int = 10

    def __post_init__(self):
        checks.count("draws", self.draws)

    def chosen(self, problem: Problem, seen: Observation) -> Selection:
        """Returns the draw with the best metric."""
        rng, scores = np.random.default_rng(seen.seed), seen.scores()
        drawn = [_meeting(problem, scores, rng) for _ in range(self.draws)]
        found = [seen.evaluate(selection) for selection in drawn]
        return drawn[max(range(self.draws), key=lambda i: (found[i].metric, -found[i].loss))]


@dataclass(frozen=True, kw_only=True)
class LayerByLayer(_Control):
    """Visits every group once, in the order of the model, and prunes the same fraction of each. PCP argues against
    this.

    Each round visits one group and scores the model as it is then, so the model may be trained between rounds.
    """

    def rounds(self, problem: Problem) -> int:
        """Returns the number of groups."""
        return len(problem.graph)

    def chosen(self, problem: Problem, seen: Observation) -> Selection:
        """Prunes the next group that has channels to lose."""
        nothing = {g.name: np.zeros(g.num_channels) for g in problem.graph}
        final = just_enough(problem, nothing, scope="local").removed()
        name = next((n for n in final if seen.kept.keep[n].all()), None)
        if name is None:
            raise stuck(problem, seen.kept)
        mask = lowest_removed(seen.scores()[name], len(final[name]))
        return Selection({**seen.kept.keep, name: mask})


def _meeting(problem: Problem, scores: Mapping[str, np.ndarray], rng: np.random.Generator) -> Selection:
    """Draws one configuration. Bisection finds the least t for which the limits hold."""
    graph = problem.graph
    shares = {name: rng.uniform(0.0, 1.0) for name in graph.groups}

    def select(t: float) -> Selection:
        return select_by_ratio(graph, scores, {n: min(1 - u**t, 1 - 1e-9) for n, u in shares.items()}, scope="local")

    problem.check_reachable(select(np.inf))  # the channels that stay may cost more than the cheapest ones
    return _least(select, problem.holds)


def _least(select: Callable[[float], Selection], good: Callable[[Selection], Any]) -> Selection:
    low, high = 0.0, 1.0
    while not good(select(high)):
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if good(select(middle)) else (middle, high)
    return select(high)

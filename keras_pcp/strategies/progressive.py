"""Progressive Channel Pruning (PCP).

Guo, Zhang, Ouyang, Xu: Model Compression using Progressive Channel Pruning, IEEE TCSVT 2020, arXiv 2507.04792.

One round, after the abstract of the paper:
    1. attempting: remove a few channels of one layer with any base criterion and estimate the accuracy drop on
       labelled validation samples; do so for every layer;
    2. selecting: choose greedily the set of layers whose pruning costs the least accuracy;
    3. pruning: remove a few channels from each selected layer.
Rounds go on until the limit is reached, so the width of every layer is a result, not an input.

Differs from the paper:
    - The full text is not public, so these values are ours: step (1 % of the cost per attempt), groups per round (a
      quarter of the groups), number of validation samples per attempt, begin and end of pruning within the training.
    - "Layer" is a group of coupled channels. An attempt masks the consumers, which equals removing the channels.
    - The accuracy drop is compared first; the increase of the loss breaks ties, which are common on few samples.
    - The number of channels in an attempt follows the schedule, and the last round stops as soon as the limit holds.
    - `attempts="lazy"` is an option of ours: a group whose drop, when last measured, was larger than those of enough
      groups measured now is not attempted again in this round, unless that was more than four rounds ago.
    - Before a round the statistics of batch normalization are re-estimated for the measurements (and put back after).
"""

from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from keras_pcp.channels import ChannelGraph, Selection
from keras_pcp.cost import Cost, check_reachable, count_cost, progress
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.selection import least_width, removal_order, smallest

# Rounds for which a measured drop counts in lazy mode.
_FRESH = 4


@dataclass(frozen=True)
class Evaluation:
    """What the model reaches on the validation samples: `metric` (higher = better) and `loss`."""

    metric: float
    loss: float


class Observation(Protocol):
    """What a strategy may ask about the running model. Selections are in the numbering of the unpruned model."""

    def scores(self) -> Mapping[str, np.ndarray]:
        """Scores of the channels that are left, by group, higher = keep, in their present numbering."""

    def evaluate(self, selection: Selection) -> Evaluation:
        """Evaluates the model as if pruned to `selection`."""


@dataclass(frozen=True)
class Attempt:
    """One attempt: what removing `removed` channels of a group costs.

    Attributes:
        group: name of the group.
        removed: channel numbers in the unpruned model.
        drop: fall of the metric.
        loss_increase: rise of the loss.
    """

    group: str
    removed: tuple[int, ...]
    drop: float
    loss_increase: float

    def rank(self) -> tuple[float, float]:
        """Sort key: smaller is pruned first."""
        return round(self.drop, 9), self.loss_increase


@dataclass(frozen=True)
class Round:
    """One round: the evaluation before it, all attempts, the groups that were pruned, and the cost after it."""

    before: Evaluation
    attempts: tuple[Attempt, ...]
    chosen: tuple[str, ...]
    macs: float
    params: int
    widths: Mapping[str, int]
    step: int = 0


@dataclass(frozen=True)
class State:
    """Where a run stands: the selection so far and the rounds that led to it. Becomes JSON and back."""

    selection: Selection
    rounds: tuple[Round, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the selection as a JSON-ready dict; the rounds are in the report."""
        return {"selection": self.selection.to_json()}


@dataclass(frozen=True)
class Progressive:
    """Progressive channel pruning as a strategy: `init`, then `update` once a round.

    Attributes:
        step: cost of one attempt as a fraction of the unpruned model, in (0, 1).
        groups_per_round: number of groups pruned in a round; None: a quarter of the groups.
        min_channels: channels that every group keeps at least.
        multiple_of: channels are removed in this multiple where possible (8 or 16 suits many CPUs).
        attempts: `"all"` to attempt every group in every round as the paper does, or `"lazy"`, which is about twice as
            fast and may choose other groups.
        samples: validation samples for the attempts; None: all.
        recalibrate: re-estimate batch normalization statistics before the attempts of a round; they are put back.
        seed: for the choice of samples and for random criteria.
    """

    step: float = 0.01
    groups_per_round: int | None = None
    min_channels: int = 1
    multiple_of: int = 1
    attempts: str = "all"
    samples: int | None = 512
    recalibrate: bool = True
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.step < 1:
            raise InvalidArgumentError(f"step must be in (0, 1), got {self.step!r}")
        if self.attempts not in ("lazy", "all"):
            raise InvalidArgumentError(f"attempts must be 'lazy' or 'all', got {self.attempts!r}")
        for name in ("groups_per_round", "min_channels", "multiple_of", "samples"):
            value = getattr(self, name)
            if value is None and name in ("groups_per_round", "samples"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgumentError(f"{name} must be an int of at least 1, got {value!r}")

    def init(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> State:
        """Returns the state before the first round.

        Raises:
            LimitError: the bounds cannot be reached.
        """
        check_reachable(graph, smallest(graph, self.min_channels, self.multiple_of), bounds)
        return State(Selection({g.name: np.ones(g.num_channels, bool) for g in graph}))

    def rounds_needed(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> int:
        """Returns how many rounds of steps of about `step` it takes to reach the bounds."""
        full = count_cost(graph)
        share = max((1 - bound / getattr(full, k) for k, bound in bounds.items()), default=0.0)
        return max(1, int(np.ceil(share / (self.step * self.width(graph)))))

    def width(self, groups: Sized) -> int:
        """Returns the number of groups pruned in a round, given all groups."""
        return min(len(groups), self.groups_per_round or max(1, round(len(groups) / 4)))

    def update(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float], target: float
    ) -> State:
        """Runs one round whose attempts are sized so that it brings `progress` to about `target`."""
        full = count_cost(graph)
        here = count_cost(graph, state.selection)
        goal = min(1.0, target) - progress(here, full, bounds)
        candidates = self.candidates(state, observation, graph, bounds, goal / self.width(graph))
        before = observation.evaluate(state.selection)
        attempts = self.attempt(state, observation, candidates, before)
        selection, chosen = self.choose(state.selection, attempts, graph, full, bounds)
        after = count_cost(graph, selection)
        done = Round(before, tuple(attempts), chosen, after.macs, after.params, _widths(selection))
        return replace(state, selection=selection, rounds=(*state.rounds, done))

    def attempt(
        self, state: State, observation: Observation, candidates: Mapping[str, tuple[int, ...]], before: Evaluation
    ) -> list[Attempt]:
        """Measures the candidates, best first; in lazy mode only as many as it takes to know the best ones."""
        known = self.known_drops(state) if self.attempts == "lazy" else {}
        queue = sorted(candidates, key=lambda name: known.get(name, (-np.inf, 0.0)))
        enough = self.width(state.selection.keep)
        made: list[Attempt] = []
        for name in queue:
            made.sort(key=Attempt.rank)
            if name in known and len(made) >= enough and made[enough - 1].rank() <= known[name]:
                break
            removed = candidates[name]
            found = observation.evaluate(_without(state.selection, name, removed))
            made.append(Attempt(name, removed, before.metric - found.metric, found.loss - before.loss))
        return sorted(made, key=Attempt.rank)

    @staticmethod
    def known_drops(state: State) -> dict[str, tuple[float, float]]:
        """Returns the last measured drop of each group that was attempted in the last few rounds."""
        return {a.group: a.rank() for done in state.rounds[-_FRESH:] for a in done.attempts}

    def candidates(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float], goal: float
    ) -> dict[str, tuple[int, ...]]:
        """Returns for every group that can give channels which ones an attempt removes."""
        scores = observation.scores()
        full, here = count_cost(graph), count_cost(graph, state.selection)
        found = {}
        for group in graph:
            left = np.flatnonzero(state.selection.keep[group.name])
            spare = len(left) - least_width(group, self.min_channels, self.multiple_of)
            if spare < 1:
                continue
            full_scores = np.full(group.num_channels, -np.inf)
            full_scores[left] = scores[group.name]
            ranked = removal_order(group, full_scores)
            unit = min(self.multiple_of, spare)
            gain = _gain(here, count_cost(graph, _without(state.selection, group.name, ranked[:unit])), full, bounds)
            if gain > 0:
                units = max(1, round(max(goal, 0.0) / gain))
                found[group.name] = tuple(int(c) for c in ranked[: min(units * unit, spare)])
        return found

    def choose(
        self,
        selection: Selection,
        attempts: list[Attempt],
        graph: ChannelGraph,
        full: Cost,
        bounds: Mapping[str, float],
    ) -> tuple[Selection, tuple[str, ...]]:
        """Adds the groups with the smallest drops, as many as a round has; fewer once the limit holds."""
        chosen: list[str] = []
        for attempt in attempts[: self.width(graph)]:
            if progress(count_cost(graph, selection), full, bounds) >= 1:
                break
            selection = self.prune(selection, attempt, graph, full, bounds)
            chosen.append(attempt.group)
        return selection, tuple(chosen)

    def prune(
        self, selection: Selection, attempt: Attempt, graph: ChannelGraph, full: Cost, bounds: Mapping[str, float]
    ) -> Selection:
        """Removes what was attempted, or the first part of it if that is enough for the limit to hold."""
        count = len(attempt.removed)
        while count > self.multiple_of:
            fewer = _without(selection, attempt.group, attempt.removed[: count - self.multiple_of])
            if progress(count_cost(graph, fewer), full, bounds) < 1:
                break
            count -= self.multiple_of
        return _without(selection, attempt.group, attempt.removed[:count])


def _gain(here: Cost, there: Cost, full: Cost, bounds: Mapping[str, float]) -> float:
    """Mean over the limits still open of the share of the way that leads from `here` to `there`."""
    shares = [
        (getattr(here, k) - getattr(there, k)) / (getattr(full, k) - bound)
        for k, bound in bounds.items()
        if getattr(here, k) > bound
    ]
    return float(np.mean(shares)) if shares else 0.0


def _without(selection: Selection, name: str, removed: Any) -> Selection:
    mask = selection.keep[name].copy()
    mask[list(removed)] = False
    return Selection({**selection.keep, name: mask})


def _widths(selection: Selection) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in selection.keep.items()}

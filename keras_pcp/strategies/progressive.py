"""Progressive Channel Pruning (PCP).

Guo, Zhang, Ouyang, Xu: Model Compression using Progressive Channel Pruning, IEEE TCSVT 2020, arXiv 2507.04792.

One round, after the abstract of the paper:
    1. attempting: for every layer, remove a few channels with any base criterion, and estimate the accuracy drop on
       labelled validation samples;
    2. selecting: choose greedily the set of layers whose pruning costs the least accuracy;
    3. pruning: remove a few channels from each selected layer.
Rounds are repeated until the limit is reached. So the width of every layer is a result, not an input.

Differs from the paper:
    - The full text is not public, so these values are ours: step (1 % of the cost per attempt), groups per round (a
      quarter of the groups), number of validation samples, begin and end of pruning within training. "Greedily" can be
      read in three ways, which `select` offers.
    - "Layer" is a group of coupled channels. An attempt masks the consumers, which equals removing the channels.
    - The accuracy drop is compared first. The increase of the loss breaks ties, which are common on few samples. With
      `Measuring(monitor="loss")` the loss alone is compared, as in LAASP.
    - The number of channels in an attempt follows the schedule, unless `step` gives it. The last round stops as soon as
      the limit holds.
    - `attempts="fast"` is ours, see `keras_pcp.strategies.racing`. The paper attempts as `attempts="exact"` does.
    - Several criteria may be given. Then each group is attempted by the criterion that costs it least, as in LAASP
      (Ghimire et al., 2023, arXiv 2506.20152).
    - With `refit_data`, the layers that read pruned channels make up for them in attempts, see
      `keras_pcp.repair.closed_form`.
    - Before a round, the statistics of batch normalization are re-estimated for the measurements, and restored after
        it.
"""

import numbers
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import check_widths, least_width, removal_order, smallest, width_option
from keras_pcp.select.problem import Problem
from keras_pcp.strategies.protocol import Action, FitLength, Needs, Observation, Pace, Strategy, spread, stuck
from keras_pcp.strategies.racing import Measured, race
from keras_pcp.strategies.rounds import Attempt, Evaluation, without
from keras_pcp.support import checks

Candidates = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Memory:
    """What is known from earlier rounds.

    Attributes:
        rounds: number of rounds so far.
        known: {group: what is known of an attempt at it}.
        draw: number of the draw of validation samples that it was measured on.
        moment: number of the moment at which it was measured.
    """

    rounds: int = 0
    known: Mapping[str, Measured] = field(default_factory=dict, compare=False)
    draw: int = 0
    moment: int = 0


@dataclass(frozen=True)
class Progressive(Strategy):
    """Progressive channel pruning as a strategy: `init`, then `update` once a round.

    Attributes:
        step: how much one attempt removes. A float in (0, 1) is a fraction of the cost of the unpruned model, the same
            for all groups. An int is a number of channels, at least 1.
        groups_per_round: number of groups pruned in a round, at most; None: a quarter of the groups.
        select: which groups are pruned in a round. `"topk"`: those with the smallest drops. `"threshold"`: the same, as
            long as their drops add up to at most `max_drop`. `"joint"`: one group after the other, each time the one
            with the smallest drop when the groups chosen before it are pruned already; this takes up to
            `groups_per_round` times as many attempts.
        max_drop: for `"threshold"`: largest sum of the drops of a round, in units of `monitor`. At least one group is
            pruned.
        min_channels: channels that every group keeps at least; or {group name: channels}.
        multiple_of: channels of a group are removed in multiples of this number where possible (8 or 16 suits many CPUs),
            so widths that are multiples stay multiples; or {group name: multiple}.
        attempts: `"exact"` to attempt every group on all samples in every round, as the paper does, or `"fast"` to stop
            measuring an attempt as soon as it is clear whether it is one of the best, and to let it rest for up to two
            rounds if it was far from them. A metric that is not a mean over
            samples (AUC, IoU ...) is measured exactly in both modes.
        confidence: for `"fast"`: number of standard errors that make this clear. More is slower and closer to
            `"exact"`.

    Raises:
        InvalidArgumentError: an option is out of range.

    Example:
        >>> strategy = Progressive(groups_per_round=2, multiple_of=8)
        >>> # Pruning(strategy, max_macs=0.5, validation_data=...)
    """

    needs: ClassVar[Needs] = Needs(several_criteria=True)

    step: float | int = 0.01
    groups_per_round: int | None = None
    select: Literal["topk", "threshold", "joint"] = "topk"
    max_drop: float = 0.01
    min_channels: int | Mapping[str, int] = 1
    multiple_of: int | Mapping[str, int] = 1
    attempts: Literal["fast", "exact"] = "fast"
    confidence: float = 3.0

    def __post_init__(self):
        number = isinstance(self.step, numbers.Real) and not isinstance(self.step, bool)
        if not number or not (self.step >= 1 if isinstance(self.step, numbers.Integral) else 0 < self.step < 1):
            raise checks.refusal("step", "a float in (0, 1) or a number of channels of at least 1", self.step)
        checks.choice("select", self.select, ("topk", "threshold", "joint"))
        checks.choice("attempts", self.attempts, ("fast", "exact"))
        for name in ("confidence", "max_drop"):
            checks.number(name, getattr(self, name), "[0, inf]")
        checks.count("groups_per_round", self.groups_per_round, optional=True)
        check_widths(self.min_channels, self.multiple_of)

    def init(self, problem: Problem) -> Memory:
        """Returns the state before the first round.

        Raises:
            LimitError: the limits cannot be reached.
            InvalidArgumentError: `min_channels` or `multiple_of` names a group that is not in the graph.
        """
        check_widths(self.min_channels, self.multiple_of, problem.graph)
        problem.check_reachable(smallest(problem.graph, self.min_channels, self.multiple_of))
        return Memory()

    def rounds(self, problem: Problem) -> int:
        """Returns roughly how many rounds it takes to reach the limits."""
        if isinstance(self.step, numbers.Integral):
            scores = {group.name: np.zeros(group.num_channels) for group in problem.graph}
            whole = problem.nothing_removed()
            attempts = self.candidates(whole, scores, problem, 0.0).items()
            gains = [problem.gain(problem.full, problem.cost(without(whole, *a))) for a in attempts]
            way = len(gains) / sum(gains) if gains else 0.0  # an estimate: later, channels are fewer and cost less
        else:
            way = problem.largest_share / self.step
        return max(1, int(np.ceil(way / max(1, self.width(problem.graph)))))

    def when(self, problem: Problem, fit: FitLength) -> Sequence[int]:
        """Returns few steps in a short `fit`. Rounds run under masks, so few cuts lose little, and retrace less."""
        return spread(problem, fit, self.rounds(problem), at_least=1)

    def width(self, groups: Sized) -> int:
        """Returns the number of groups that are pruned in a round."""
        return min(len(groups), self.groups_per_round or max(1, round(len(groups) / 4)))

    def update(self, problem: Problem, state: Memory, seen: Observation) -> tuple[Memory, Action | None]:
        """Runs one round if one is due. The size of its attempts makes the round go one share of the way."""
        pace, reached = Pace.of(self, problem, seen), problem.progress(seen.kept)
        if not pace.is_due(reached, seen):
            return state, None
        goal = (pace.target(reached) - reached) / self.width(problem.graph)
        proposals = [self.candidates(seen.kept, seen.scores(criterion), problem, goal) for criterion in seen.criteria]
        meter = _Meter(self, state, seen)
        candidates = proposals[0] if len(proposals) == 1 else self.by_best_criterion(proposals, meter)
        keep, attempts, chosen = self.select_groups(seen.kept, candidates, meter, problem)
        if keep == seen.kept:
            raise stuck(problem, keep)
        more = pace.is_due(problem.progress(keep), seen)
        action = Action(keep, more=more, before=meter.before, attempts=tuple(attempts), chosen=chosen)
        return Memory(state.rounds + 1, meter.known, seen.draw, seen.moment), action

    def candidates(
        self, kept: Selection, scores: Mapping[str, np.ndarray], problem: Problem, goal: float
    ) -> dict[str, tuple[int, ...]]:
        """Returns the channels that an attempt removes, for every group that can give channels."""
        here, found = problem.cost(kept), {}
        for group in problem.graph:
            present = kept.keep[group.name]
            spare = int(present.sum()) - least_width(group, self.min_channels, self.multiple_of)
            if spare < 1:
                continue
            ranked = removal_order(np.where(present, scores[group.name], -np.inf))
            unit = min(width_option(self.multiple_of, group.name), spare)
            gain = problem.gain(here, problem.cost(without(kept, group.name, ranked[:unit])))
            if gain > 0:
                wanted = self.step / unit if isinstance(self.step, numbers.Integral) else max(goal, 0.0) / gain
                units = max(1, round(wanted))
                found[group.name] = tuple(int(c) for c in ranked[: min(units * unit, spare)])
        return found

    def by_best_criterion(self, proposals: Sequence[Candidates], meter: "_Meter") -> dict[str, tuple[int, ...]]:
        """Returns for every group the proposal with the smallest drop. Each proposal is that of one criterion."""
        best = {}
        for name in dict.fromkeys(name for p in proposals for name in p):
            distinct = {tuple(sorted(p[name])): p[name] for p in proposals if name in p}
            options = {f"{name} by {i}": (name, removed) for i, removed in enumerate(distinct.values())}
            found = meter.measure(options, 1) if len(options) > 1 else None
            best[name] = options[min(found, key=lambda key: found[key].value()) if found else f"{name} by 0"][1]
        return best

    def select_groups(
        self, kept: Selection, candidates: Candidates, meter: "_Meter", problem: Problem
    ) -> tuple[Selection, list[Attempt], tuple[str, ...]]:
        """Prunes the best groups, `width` of them. Stops early if the limits hold or `max_drop` is used up."""
        count, budget = self.width(problem.graph), self.max_drop if self.select == "threshold" else np.inf
        left, spent = dict(candidates), 0.0
        chosen: list[str] = []
        made: list[Attempt] = []
        while left and len(chosen) < count and problem.progress(kept) < 1:
            at_once = 1 if self.select == "joint" else count
            attempts = meter.attempts(left, at_once, kept)
            made += attempts
            for attempt in attempts[:at_once]:
                spent += attempt.drop
                if problem.progress(kept) >= 1 or (chosen and spent > budget):
                    return kept, made, tuple(chosen)
                kept = self.prune(kept, attempt, problem)
                chosen.append(attempt.group)
                del left[attempt.group]
        return kept, made, tuple(chosen)

    def prune(self, kept: Selection, attempt: Attempt, problem: Problem) -> Selection:
        """Removes the attempted channels, or only the first of them if these are enough for the limits to hold."""
        count, unit = len(attempt.removed), width_option(self.multiple_of, attempt.group)
        while count > unit:
            fewer = without(kept, attempt.group, attempt.removed[: count - unit])
            if problem.progress(fewer) < 1:
                break
            count -= unit
        return without(kept, attempt.group, attempt.removed[:count])


class _Meter:
    """Measures the attempts of one round, and remembers what earlier rounds have measured."""

    def __init__(self, strategy: Progressive, state: Memory, seen: Observation):
        self.strategy, self.state, self.seen = strategy, state, seen
        self.known = dict(state.known) if state.draw == seen.draw else {}
        if state.moment != seen.moment:  # the model has been trained since
            self.known = {key: measured.awake() for key, measured in self.known.items()}
        self.exact = strategy.attempts == "exact" or not seen.parts
        self.measured_before: dict[int, np.ndarray] = {}
        if self.exact:
            now = seen.evaluate(seen.kept)
            self.measured_before[0] = np.array([[now.metric, now.loss]])

    @property
    def before(self) -> Evaluation:
        """The evaluation before the round, on the samples that at least one attempt was measured on."""
        if not self.measured_before:
            return self.seen.evaluate(self.seen.kept)
        return Evaluation(*(float(v) for v in np.concatenate(list(self.measured_before.values())).mean(axis=0)))

    def attempts(self, candidates: Candidates, count: int, kept: Selection) -> list[Attempt]:
        """Measures what removing each candidate from `kept` costs; returns the attempts, best first."""
        options = {name: (name, removed) for name, removed in candidates.items()}
        found = self.measure(options, count, kept)
        return sorted((Attempt(n, m.removed, *m.mean(), share=m.share) for n, m in found.items()), key=Attempt.rank)

    def measure(
        self, options: Mapping[str, tuple[str, tuple[int, ...]]], count: int, kept: Selection | None = None
    ) -> dict[str, Measured]:
        """Measures {key: (group, channels)}, in fast mode until the best `count` are known."""
        base = self.seen.kept if kept is None else kept
        pruned = {key: without(base, *option) for key, option in options.items()}
        removed = {key: option[1] for key, option in options.items()}
        if self.exact:
            return race(
                removed, {}, lambda keys, part: {k: self.exactly(pruned[k]) for k in keys}, [slice(0, 1)], count
            )

        def compare(keys, part):
            before, drops = self.seen.compare({k: pruned[k] for k in keys}, part)
            self.measured_before[part.start] = before
            return drops

        first = base is self.seen.kept
        turn = self.state.rounds % len(self.seen.parts)  # in the long run, every part is measured again
        parts = [*self.seen.parts[turn:], *self.seen.parts[:turn]]
        found = race(removed, self.known if first else {}, compare, parts, count, self.strategy.confidence)
        self.known.update(found if first else {})
        return found

    def exactly(self, selection: Selection) -> np.ndarray:
        """Returns fall of the metric and rise of the loss on all samples, as one chunk."""
        found = self.seen.evaluate(selection)
        return self.measured_before[0] * [1, -1] + [[-found.metric, found.loss]]

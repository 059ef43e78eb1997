"""What a strategy is: at some moments it observes the model in training, and decides what happens to its channels.

A strategy is a frozen dataclass that derives from `Strategy`. It stores nothing itself. What it has to remember is its
state, which `init` makes and `update` replaces. All selections, scores and weights use the channel numbers of the
unpruned model, even after channels have been cut.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, get_args

import numpy as np

from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.graph.selection import Selection
from keras_pcp.schedules import cubic
from keras_pcp.select.problem import Problem
from keras_pcp.strategies import json_state
from keras_pcp.strategies.rounds import Attempt, Evaluation, How
from keras_pcp.support import checks
from keras_pcp.support.batch import LossTerm

# A cut costs one retrace, about as long as twenty training steps; one cut for this many steps of the pruning phase.
_STEPS_PER_CUT = 256
# At most this share of the model is cut between two training steps, unless a refit makes up for it.
_LARGEST_CUT = 0.25

Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Needs:
    """What a strategy needs.

    Attributes:
        validation: validation samples, to evaluate the model.
        several_criteria: whether several criteria may be given.
        training: training steps between its actions, so it cannot run in `search_widths`.
        holds: whether it holds channels at zero, which an optimizer with `use_ema` would bring back.
        batches: the inputs of the latest training batches, on which cuts are corrected, see `Action.correct`.
    """

    validation: bool = True
    several_criteria: bool = False
    training: bool = False
    holds: bool = False
    batches: bool = False


@dataclass(frozen=True)
class FitLength:
    """How long a `fit` is, and which part of it is for pruning.

    Attributes:
        total: number of training steps, or of epochs if the data does not give its number of steps.
        per_epoch: steps of an epoch; None if `total` counts epochs.
        begin, end: fractions of the `fit` between which to prune.
        refit: whether layers are refit after a cut.
        schedule: how fast to prune between `begin` and `end`, see `keras_pcp.schedules`.
    """

    total: int
    per_epoch: int | None = None
    begin: float = 0.0
    end: float = 1.0
    refit: bool = False
    schedule: Callable[[float], float] = cubic

    @property
    def first(self) -> int:
        """The first step at which to prune."""
        return math.floor(self.begin * self.total)

    @property
    def last(self) -> int:
        """The step by which pruning is over; some training comes after it."""
        return max(self.first, min(math.ceil(self.end * self.total), self.total - 1))

    def progress(self, step: int) -> float:
        """Returns how far pruning should have come at a step by the schedule, in [0, 1].

        Example:
            >>> FitLength(total=100, begin=0.1, end=0.5, schedule=lambda t: t).progress(20)
            0.25
        """
        length = max(1, self.last - self.first)
        return min(1.0, float(self.schedule(min(1.0, max(0.0, (step - self.first) / length)))))

    def epoch_ends(self, every: int = 1) -> list[int]:
        """Returns the ends of every `every`-th epoch between `begin` and `end`, counted back from the last one there.

        Raises:
            InvalidArgumentError: no epoch ends in that time.

        Example:
            >>> FitLength(total=100, per_epoch=10, begin=0.1, end=0.6).epoch_ends(every=2)
            [20, 40, 60]
        """
        size = self.per_epoch or 1
        ends = list(range(self.last // size * size, max(self.first, size - 1), -size * every))[::-1]
        if not ends:
            raise InvalidArgumentError(
                f"this fit has no end of an epoch between begin={self.begin} and end={self.end}; train for more epochs, "
                "or move begin and end apart"
            )
        return ends


class Observation(Protocol):
    """What a strategy can ask about the model in training. Questions change nothing.

    During `update`, batch normalization has statistics that fit the current weights.

    Attributes:
        step: training steps made so far, in the unit of `FitLength.total`; 0 in a search without training.
        moment, moments: number of this moment, from 0, and of all moments; both 0 in a search without training.
        next: step of the next moment; of this one if it is the last.
        target: how far pruning should have come after this moment, in [0, 1], by the schedule; 1 in a search.
        kept: channels that the model computes with.
        uncut: channels that it still has: those in `kept`, and those that are held at zero and may come back.
        criteria: the criteria that the caller gave.
        seed: for random draws.
        draw: how often other validation samples have been drawn, from 0. Results on different draws cannot be compared.
        parts: slices that divide the validation samples, counted in chunks, for `compare`; empty if the samples cannot
            be divided.
    """

    @property
    def step(self) -> int: ...
    @property
    def moment(self) -> int: ...
    @property
    def moments(self) -> int: ...
    @property
    def next(self) -> int: ...
    @property
    def target(self) -> float: ...
    @property
    def kept(self) -> Selection: ...
    @property
    def uncut(self) -> Selection: ...
    @property
    def criteria(self) -> Sequence[Any]: ...
    @property
    def seed(self) -> int: ...
    @property
    def draw(self) -> int: ...
    @property
    def parts(self) -> Sequence[slice]: ...

    def scores(self, criterion: Any = None) -> Scores:
        """Scores the channels by a criterion: {group: float array (num_channels,)}. None: the first criterion given.

        Higher = keep. Channels that have been cut get -inf. Those that are held at zero are scored like the others, see
        `Statistics.present`.
        """

    def evaluate(self, selection: Selection) -> Evaluation:
        """Evaluates the model as if pruned to `selection`, which keeps only uncut channels, on all samples."""

    def compare(self, selections: Mapping[str, Selection], part: slice) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Evaluates the model as it is and as if pruned to each of the selections, on a part of the samples.

        Returns:
            Metric and loss of the model as it is, float array (chunks in `part`, 2), and {name: float array (chunks in
            `part`, 2)}, the fall of the metric and the rise of the loss for each selection.
        """


@dataclass(frozen=True, eq=False)
class Action:
    """A change of the model that a strategy asks for.

    Attributes:
        keep: channels to keep, chosen from the uncut ones.
        how: what happens to the others. `"cut"`: they are removed for good, and the model gets smaller. `"hold"`: they
            have no effect, even after training steps, but a later action may bring them back with the weights that they
            had. `"zero"`: the weights that make them are set to 0 once. Training may revive them.
        more: whether to ask again before training continues.
        correct: whether the layers that read what is cut make up for it. Their weights are solved by least squares on the
            latest training batches, see `Needs.batches`. Has no effect where the inputs of the batches are not known.
        weights: {index of a weight of the model: its value in the shape of the unpruned model}, written with the
            action.
        before, attempts, chosen: for the report: what was measured, and the names of the groups in the order in which
            they were chosen. By default `chosen` has the groups whose channels change.
    """

    keep: Selection
    how: How = "cut"
    more: bool = False
    correct: bool = False
    weights: Mapping[int, np.ndarray] = field(default_factory=dict)
    before: Evaluation | None = None
    attempts: tuple[Attempt, ...] = ()
    chosen: tuple[str, ...] = ()

    def __post_init__(self):
        checks.instance("keep", self.keep, Selection, "a keras_pcp.Selection")
        checks.choice("how", self.how, get_args(How))


class Strategy(ABC):
    """Decides what is pruned and when. Only `update` must be written, see "Add a strategy" in CONTRIBUTING.

    Example:
        >>> from dataclasses import dataclass
        >>> from keras_pcp.select.select import just_enough
        >>> @dataclass(frozen=True)
        ... class AtOnce(Strategy):
        ...     needs = Needs(validation=False)
        ...     def update(self, problem, state, seen):
        ...         return state, Action(just_enough(problem, seen.scores()))
        >>> check_strategy(AtOnce()) == AtOnce()
        True
    """

    needs: ClassVar[Needs] = Needs()

    def init(self, problem: Problem) -> Any:
        """Returns the state before the first moment.

        The state may be None, or anything made of JSON types, tuples, arrays, selections and dataclasses. A strategy
        may raise LimitError here if the limits cannot be reached.
        """
        return None

    def rounds(self, problem: Problem) -> int:
        """Returns roughly how many actions it takes to reach the limits."""
        return 1

    def when(self, problem: Problem, fit: FitLength) -> Sequence[int]:
        """Returns rising steps after which `update` is called. By default, the schedule goes equally far between them."""
        return spread(problem, fit, self.rounds(problem))

    @abstractmethod
    def update(self, problem: Problem, state: Any, seen: Observation) -> tuple[Any, Action | None]:
        """Returns the new state and an action, or the new state and None if nothing is to be done now."""

    def loss_terms(self, problem: Problem, state: Any) -> Sequence[LossTerm]:
        """Returns functions that take the loss and a `Batch` and return the loss to use until the next moment."""
        return ()

    def state_to_json(self, state: Any) -> Any:
        """Returns a state as JSON-ready data."""
        return json_state.to_json(state)

    def state_from_json(self, data: Any) -> Any:
        """Undoes `state_to_json`."""
        return json_state.from_json(data, type(self))


def spread(problem: Problem, fit: FitLength, rounds: int, at_least: int = 4) -> list[int]:
    """Spreads moments of pruning: at most one for each round, and not so many that retracing takes too long.

    From one to the next, the schedule goes equally far, so each of them cuts about as much as the others.

    Args:
        problem: the graph and the limits.
        fit: the length of the `fit`.
        rounds: number of rounds.
        at_least: number of moments in a short `fit`, if it has so many steps. It has more if more must be removed than a
            network bears at a time.

    Raises:
        InvalidArgumentError: the `fit` is too short.
    """
    count = _count(problem, fit, rounds, at_least)
    phase, found = range(fit.first, fit.last), [fit.first - 1]
    for number in range(count):  # at the last step at which the schedule has not gone further
        step = fit.first + max(0, bisect_right(phase, number / count, key=fit.progress) - 1)
        found.append(min(max(step, found[-1] + 1), fit.last - count + number))
    return found[1:]


def evenly(problem: Problem, fit: FitLength, rounds: int) -> list[int]:
    """Spreads as many moments as `spread`, at equal distances. Raises the same error."""
    count = _count(problem, fit, rounds, 4)
    return [fit.first + (fit.last - fit.first) * i // count for i in range(count)]


def _count(problem: Problem, fit: FitLength, rounds: int, at_least: int) -> int:
    fewest, steps = _fewest(problem, fit), fit.last - fit.first
    affordable = steps // (_STEPS_PER_CUT if fit.per_epoch else 1)
    return min(max(fewest, min(at_least, steps), affordable), max(rounds, fewest))


def _fewest(problem: Problem, fit: FitLength) -> int:
    """Returns the smallest number of moments of pruning; raises InvalidArgumentError if there are not so many steps."""
    steps, removed = fit.last - fit.first, problem.largest_share
    least = 1 if fit.refit else max(1, math.ceil(removed / _LARGEST_CUT))
    if steps < least or fit.total < 2:
        unit = "steps" if fit.per_epoch else "epochs (the data does not give its number of steps)"
        need = math.ceil((least + 1) / (fit.end - fit.begin))
        raise InvalidArgumentError(
            f"this fit is too short to prune in: it has {fit.total} {unit}, of which {steps} lie between "
            f"begin={fit.begin} and end={fit.end} and leave time to recover; removing "
            f"{removed:.0%} needs at least {least}. Train for {need} or more, or move begin and end apart"
        )
    return least


@dataclass(frozen=True)
class Pace:
    """For strategies that prune in rounds: how far one round goes, and whether one is due.

    Attributes:
        share: part of the way that a round goes.
    """

    share: float

    @classmethod
    def of(cls, strategy: Strategy, problem: Problem, seen: Observation) -> "Pace":
        """Returns the pace that reaches the limits in the strategy's number of rounds, or of moments if larger."""
        return cls(1 / max(strategy.rounds(problem), seen.moments))

    def is_due(self, reached: float, seen: Observation) -> bool:
        """Returns whether another round is due. A small remainder is not worth a round, except at the end."""
        return reached < (seen.target - self.share / 2 if seen.target < 1 else 1.0)

    def target(self, reached: float) -> float:
        """Returns how far pruning should have come after the next round."""
        return min(1.0, reached + self.share)


def stuck(problem: Problem, kept: Selection) -> PruningError:
    """Returns the error for a round that finds nothing to remove, to be raised."""
    return PruningError(
        f"no group can give more channels, but only {problem.progress(kept):.1%} of the way is done; lower min_channels and "
        "multiple_of, freeze fewer layers, or raise the limit"
    )


def checked_terms(strategy: Strategy, problem: Problem, state: Any) -> list[LossTerm]:
    """Returns the loss terms of a strategy; raises InvalidArgumentError if they are not a list of functions."""
    name = f"{type(strategy).__name__}.loss_terms"
    terms = checks.items(strategy.loss_terms(problem, state))
    if terms is None or not all(map(callable, terms)):
        raise InvalidArgumentError(f"{name} must return a list of functions (loss, batch) -> loss")
    return terms


def checked_answer(strategy: Strategy, answer: Any) -> tuple[Any, Action | None]:
    """Returns what `update` answered; raises InvalidArgumentError if it is not a state and an action."""
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Action | None):
        raise InvalidArgumentError(
            f"{type(strategy).__name__}.update must return two things, the state and an Action or None; got "
            f"{checks.shown(answer)}"
        )
    return answer


def check_strategy(value: Any) -> Strategy:
    """Returns a strategy; raises InvalidArgumentError for anything else."""
    advice = "use one of keras_pcp.strategies, or derive from keras_pcp.strategies.Strategy"
    return checks.instance("strategy", value, Strategy, "a strategy such as keras_pcp.strategies.Progressive()", advice)

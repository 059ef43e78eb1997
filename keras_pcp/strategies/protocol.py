"""What a strategy is: it is shown the model in training at some moments, and says what is to be done to its channels.

A strategy is a frozen dataclass that derives from `Strategy` and keeps nothing itself: what it has to remember is its
state, which `init` makes and `update` replaces. All selections, scores and weights are in the numbering of the unpruned
model, whatever has been cut by then.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.selection import Selection
from keras_pcp.select.problem import Problem
from keras_pcp.strategies import json_state
from keras_pcp.strategies.rounds import Attempt, Evaluation
from keras_pcp.support import checks

# A cut costs one retrace, about as long as eight training steps; this many steps should lie between two cuts.
_STEPS_PER_CUT = 64
# At most this share of the model is cut between two training steps, unless a refit makes up for it.
_LARGEST_CUT = 0.25

LossTerm = Callable[[Any, Any], Any]
Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Needs:
    """What a strategy needs.

    Attributes:
        validation: validation samples, to evaluate the model.
        several_criteria: whether several criteria may be given.
        training: steps of training between its actions, so that it cannot run in `search_widths`.
    """

    validation: bool = True
    several_criteria: bool = False
    training: bool = False


@dataclass(frozen=True)
class FitLength:
    """How long a `fit` is, and which part of it is for pruning.

    Attributes:
        total: number of training steps; of epochs, where the data does not say how many steps an epoch has.
        per_epoch: steps of an epoch; None where `total` counts epochs.
        begin, end: fractions of the `fit` between which to prune.
        refit: whether layers are refit after a cut.
    """

    total: int
    per_epoch: int | None = None
    begin: float = 0.0
    end: float = 1.0
    refit: bool = False

    @property
    def first(self) -> int:
        """The first step at which to prune."""
        return math.floor(self.begin * self.total)

    @property
    def last(self) -> int:
        """The step by which pruning is over; some training comes after it."""
        return max(self.first, min(math.ceil(self.end * self.total), self.total - 1))

    def epoch_ends(self, every: int = 1) -> list[int]:
        """Returns the ends of every so many epochs between `begin` and `end`; the last one is the last in that time.

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
    """What a strategy may ask about the model in training. Asking changes nothing.

    While a strategy is asked, batch normalization has statistics that belong to the present weights.

    Attributes:
        step: training steps made so far, in the unit of `FitLength.total`; 0 in a search without training.
        moment, moments: number of this moment, from 0, and of all moments; both 0 in a search without training.
        target: how far pruning should have come after this moment, in [0, 1], by the schedule; 1 in a search.
        kept: channels that the model computes with.
        uncut: channels that it still has: those of `kept`, and those that are held at zero and may come back.
        criteria: the criteria that the caller gave.
        seed: for random draws.
        draw: number of times that other validation samples were drawn, from 0: results on different draws do not compare.
        parts: slices that divide the validation samples, counted in chunks, for `compare`; none if they cannot be
            divided.
    """

    step: int
    moment: int
    moments: int
    target: float
    kept: Selection
    uncut: Selection
    criteria: Sequence[Any]
    seed: int
    draw: int
    parts: Sequence[slice]

    def scores(self, criterion: Any = None) -> Scores:
        """Scores the channels by a criterion, the first one given if None: {group: float array (num_channels,)}.

        Higher = keep. -inf for channels that have been cut. Those that are held at zero are scored like the others; see
        `Statistics.present`.
        """

    def evaluate(self, selection: Selection) -> Evaluation:
        """Evaluates the model as if pruned to `selection`, of uncut channels, on all validation samples."""

    def compare(self, selections: Mapping[str, Selection], part: slice) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Evaluates the model as it is and as if pruned to each of the selections, on a part of the samples.

        Returns:
            Metric and loss of the model as it is, float array (chunks in `part`, 2), and by name the same shape: fall of
            the metric and rise of the loss.
        """


HOW = ("cut", "hold", "zero")


@dataclass(frozen=True, eq=False)
class Action:
    """What is to be done to the model.

    Attributes:
        keep: channels to keep; of the uncut ones.
        how: what is done to the others. `"cut"`: they are removed for good, and the model gets smaller. `"hold"`: they
            are taken out of the model and stay out over training steps, but a later action may bring them back with the
            weights that they had. `"zero"`: the weights that make them are set to 0 once; training may revive them.
        more: ask again before training goes on.
        weights: {index of a weight of the model: its value in the shape of the unpruned model}, written with the action.
        before, attempts, chosen: for the report: what was measured, and names of groups in the order in which they were
            chosen; by default those whose channels change.
    """

    keep: Selection
    how: str = "cut"
    more: bool = False
    weights: Mapping[int, np.ndarray] = field(default_factory=dict)
    before: Evaluation | None = None
    attempts: tuple[Attempt, ...] = ()
    chosen: tuple[str, ...] = ()

    def __post_init__(self):
        checks.instance("keep", self.keep, Selection, "a keras_pcp.Selection")
        checks.choice("how", self.how, HOW)


class Strategy(ABC):
    """Decides what is pruned and when. `update` is all that has to be written; see "Add a strategy" in CONTRIBUTING.

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
        """Returns the state before the first moment: None, or anything that is made of what JSON knows, tuples, arrays,
        selections and dataclasses. Raises LimitError if the limits cannot be reached.
        """
        return None

    def rounds(self, problem: Problem) -> int:
        """Returns about how many actions it takes to reach the limits."""
        return 1

    def when(self, problem: Problem, fit: FitLength) -> Sequence[int]:
        """Returns the steps after which `update` is called, rising; by default spread between `begin` and `end`."""
        return spread(problem, fit, self.rounds(problem))

    @abstractmethod
    def update(self, problem: Problem, state: Any, seen: Observation) -> tuple[Any, Action | None]:
        """Returns the new state and what is to be done, or None if nothing is to be done now."""

    def loss_terms(self, problem: Problem, state: Any) -> Sequence[LossTerm]:
        """Returns what changes the loss until the next moment: functions of the loss and a `Batch` that return a loss."""
        return ()

    def state_to_json(self, state: Any) -> Any:
        """Returns a state as JSON-ready data."""
        return json_state.to_json(state)

    def state_from_json(self, data: Any) -> Any:
        """Undoes `state_to_json`."""
        return json_state.from_json(data, type(self))


def spread(problem: Problem, fit: FitLength, rounds: int) -> list[int]:
    """Spreads moments of pruning evenly: no more than there are rounds, and as many as retracing is worth.

    Raises:
        InvalidArgumentError: the `fit` is too short.
    """
    first, last, removed = fit.first, fit.last, problem.largest_share
    least = 1 if fit.refit else max(1, math.ceil(removed / _LARGEST_CUT))
    if last - first < least or fit.total < 2:
        unit = "steps" if fit.per_epoch else "epochs (the data does not tell its number of steps)"
        need = math.ceil((least + 1) / (fit.end - fit.begin))
        raise InvalidArgumentError(
            f"this fit is too short to prune in: it has {fit.total} {unit}, of which {last - first} lie between "
            f"begin={fit.begin} and end={fit.end} and leave time to recover; removing "
            f"{removed:.0%} needs at least {least}. Train for {need} or more, or move begin and end apart"
        )
    count = min(max(least, min(4, last - first), (last - first) // _STEPS_PER_CUT), max(rounds, least))
    return [first + (last - first) * i // count for i in range(count)]


@dataclass(frozen=True)
class Pace:
    """How far one round of a strategy that prunes in rounds goes, and whether one is due.

    Attributes:
        share: part of the way that a round goes.
    """

    share: float

    @classmethod
    def of(cls, strategy: Strategy, problem: Problem, seen: Observation) -> "Pace":
        """Returns the pace at which a strategy reaches the limits in its rounds, or in as many moments as there are."""
        return cls(1 / max(strategy.rounds(problem), seen.moments))

    def is_due(self, reached: float, seen: Observation) -> bool:
        """Returns whether another round is due: not for a small rest, except at the end."""
        return reached < (seen.target - self.share / 2 if seen.target < 1 else 1.0)

    def target(self, reached: float) -> float:
        """Returns how far pruning should have come after the next round."""
        return min(1.0, reached + self.share)


def check_strategy(value: Any) -> Strategy:
    """Returns a strategy; raises InvalidArgumentError for anything else."""
    advice = "take one of keras_pcp.strategies, or derive from keras_pcp.strategies.Strategy"
    return checks.instance("strategy", value, Strategy, "a strategy such as keras_pcp.strategies.Progressive()", advice)

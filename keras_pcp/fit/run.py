"""Runs a strategy on a model: asks it at some moments, and carries out its answers."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from keras_pcp.criteria import Criterion, get
from keras_pcp.errors import InvalidArgumentError, NotFiniteError, PruningError
from keras_pcp.fit.live_model import LiveModel
from keras_pcp.fit.metric import Measuring
from keras_pcp.fit.observation import Moment, Observed, Samples
from keras_pcp.graph.channel_graph import check_selection
from keras_pcp.graph.selection import Selection
from keras_pcp.select.problem import Problem
from keras_pcp.strategies.protocol import Action, Strategy, checked_answer
from keras_pcp.strategies.rounds import Evaluation, Round
from keras_pcp.support import checks
from keras_pcp.support.changes import Journal, guarded
from keras_pcp.support.models import check_finite

Criteria = str | Criterion | Sequence[str | Criterion]


def criteria_of(criterion: Criteria) -> list[Criterion]:
    """Returns the criteria for a name, a callable, or a sequence of them."""
    several = None if callable(criterion) else checks.items(criterion)
    given: list[Any] = [criterion] if several is None else several
    found = [get(each) for each in given]
    if not found:
        raise InvalidArgumentError("criterion is empty; give one or several")
    return found


class Run:
    """Runs a strategy on a model. Selections use the channel numbers of the unpruned model.

    Args:
        model: the model.
        problem: its channel graph, and what it may cost.
        strategy: decides what is pruned.
        criteria: the criteria that the strategy may score by.
        validation_data: samples, or a function that returns them; None only if the strategy needs none.
        measuring: how the model is measured.
        refit_data: samples on which readers of cut channels are refit; None: no refit.
        judge: the compiled model, if `model` is an uncompiled copy of it.

    Attributes:
        state: state of the strategy.
        kept: channels that the model computes with; the others are cut, will be cut, or are held at zero.
        how: what the latest action does to the channels that it does not keep.
        rounds: the actions so far.
        live: the model.
        seen: what the strategy sees.
        latest: returns inputs of the latest training batches, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        problem: Problem,
        strategy: Strategy,
        criteria: Criteria = "l1",
        validation_data: Any = None,
        measuring: Measuring | None = None,
        refit_data: Any = None,
        judge: keras.Model | None = None,
    ):
        criteria, measuring = criteria_of(criteria), measuring or Measuring()
        _check_needs(strategy, criteria, validation_data)
        self.problem, self.strategy = problem, strategy
        self.state = strategy.init(problem)
        self.kept, self.how = problem.nothing_removed(), "cut"
        self.rounds: tuple[Round, ...] = ()
        self.live = LiveModel(model, problem.graph, self.kept)
        if refit_data is not None:
            self.live.refit_from(refit_data, measuring.seed)
        self.seen = Observed(self.live, Samples(model, validation_data, measuring, judge), criteria)
        self.seen.check_criteria()
        self.latest: Callable[[], Any] = lambda: None

    @property
    def progress(self) -> float:
        """How far pruning has come: 0 at the start, 1 or more when every limit holds."""
        return self.problem.progress(self.kept)

    def ask(self, at: Moment, fresh: bool = False) -> Action | None:
        """Asks the strategy once and notes its decision. `carry_out` changes the model.

        Args:
            at: the moment.
            fresh: whether this is the first question at a moment, for which validation samples are drawn again.

        Raises:
            PruningError: the answer is to cut, but it cuts nothing.
            NotFiniteError: the model has or gives NaN or infinite values. Nothing is changed then.
        """
        if self.live.refit_on is not None and self.kept != self.live.uncut:
            raise PruningError("between two rounds with a refit, the model must be shrunk")
        try:
            state, action = guarded(lambda: self._answer(at, fresh and bool(at.step or self.rounds)))
            self._check_finite(action.before if action else None)
        except NotFiniteError:
            raise
        except InvalidArgumentError as error:
            evaluator = self.seen.samples.evaluator
            self._check_finite(None if evaluator is None else evaluator.evaluate(), error)
            raise
        self.state = state
        if action is not None:
            self._decide(action, at.step)
        return action

    def _answer(self, at: Moment, fresh: bool) -> tuple[Any, Action | None]:
        with ExitStack() as stack:
            self.seen.open(at, self.kept, stack, fresh)
            return checked_answer(self.strategy, self.strategy.update(self.problem, self.state, self.seen))

    def _decide(self, action: Action, step: int) -> None:
        """Checks that an action is possible, and notes what it decides."""
        keep, name = self._whole(action.keep), type(self.strategy).__name__
        asked = {"holds": action.how == "hold", "batches": action.correct}
        for need, used in asked.items():
            if used and not getattr(self.strategy.needs, need):
                does = "corrects what it cuts" if action.correct else "holds channels at zero"
                raise InvalidArgumentError(
                    f"{name} {does}, but does not say so by `needs`; set needs = Needs(..., {need}=True) in the strategy"
                )
        check_selection(self.problem.graph, keep)
        for group, mask in keep.keep.items():
            if (mask & ~self.live.uncut.keep[group]).any():
                raise InvalidArgumentError(
                    f"{name} keeps channels of group {group!r} that have been cut; only channels that are held "
                    'at zero, Action(keep, how="hold"), can come back'
                )
        if action.how == "cut" and self.how == "cut" and keep == self.kept and not action.weights:
            raise PruningError(
                f"the action of {name} at step {step} cuts nothing: it keeps what is kept already ({self.progress:.1%} of "
                "the way is done). If nothing is to be done now, update must return None in place of the action"
            )
        changed = [n for n, mask in keep.keep.items() if not np.array_equal(mask, self.kept.keep[n])]
        cost = self.problem.cost(keep)
        widths = {n: int(mask.sum()) for n, mask in keep.keep.items()}
        chosen = action.chosen or tuple(changed)
        done = Round(action.before, action.attempts, chosen, cost.macs, cost.params, widths, action.how, step)
        self.rounds = (*self.rounds, done)
        self.kept, self.how = (keep, action.how) if action.how != "zero" else (self.kept, self.how)

    def _whole(self, selection: Selection) -> Selection:
        """Returns a selection with a mask for every group."""
        return Selection({**self.live.uncut.keep, **selection.keep})

    def carry_out(
        self, action: Action | None, more: bool = False, record: Callable[[Journal], None] = lambda journal: None
    ) -> bool:
        """Changes the model as decided, and returns whether it has become smaller.

        Args:
            action: the latest action, for what it does beyond `kept`.
            more: whether another action follows before the model is trained.
            record: updates everything that must match the model.
        """
        smaller = self.how == "cut" and self.kept != self.live.uncut
        if smaller:
            samples = self.latest() if action is not None and action.correct else None
            self.live.cut(self.kept, more, record, samples)
        if action is not None and action.how == "hold":
            self.live.hold(self.kept)
        if action is not None and action.how == "zero":
            self.live.zero(self._whole(action.keep))
        if action is not None and action.weights:
            self.live.write(action.weights)
        self.seen.forget()
        return smaller

    def check_finite(self) -> None:
        """Raises NotFiniteError if weights of the model are NaN or infinite."""
        check_finite(self.live.model)

    def _check_finite(self, found: Evaluation | None, cause: Exception | None = None) -> None:
        """Raises NotFiniteError if the evaluation of the model as it is, or one of its weights, is not finite."""
        model = self.live.model
        check_finite(model)
        if found and not np.isfinite([found.metric, found.loss]).all():
            measure = self.seen.samples.measure
            measured = "a metric of" if measure is None else measure.text
            raise NotFiniteError(
                f"model {model.name!r} gives {measured} {found.metric} and loss {found.loss} on validation_data"
            ) from cause

    def to_json(self) -> dict[str, Any]:
        """Returns the state of the run as JSON-ready data."""
        return {
            "selection": self.kept.to_json(),
            "how": self.how,
            "rounds": [asdict(r) for r in self.rounds],
            "state": self.strategy.state_to_json(self.state),
        }

    def from_json(self, data: Any) -> None:
        """Continues from the state of another run."""
        kept = Selection.from_json(data["selection"])
        rounds = tuple(map(Round.from_json, data["rounds"]))
        state = self.strategy.state_from_json(data["state"])
        check_selection(self.problem.graph, kept)
        if kept.keep.keys() != self.problem.graph.groups.keys():
            raise InvalidArgumentError("its channel groups are not those of the model")
        self.kept, self.how, self.rounds, self.state = kept, str(data["how"]), rounds, state


def _check_needs(strategy: Strategy, criteria: Sequence[Criterion], validation_data: Any) -> None:
    name = type(strategy).__name__
    if not strategy.needs.several_criteria and len(criteria) > 1:
        raise InvalidArgumentError(
            f"{name} goes by one criterion, but {len(criteria)} are given; give one, or use Progressive, which attempts "
            "each group with all of them"
        )
    if validation_data is None and strategy.needs.validation:
        raise InvalidArgumentError(f"{name} needs validation_data: labelled samples on which it evaluates the model")

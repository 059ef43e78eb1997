"""Implements `keras_pcp.strategies.Observation`: what a strategy sees of the model."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_pcp.criteria import Criterion, score_channels
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.fit.compare import Comparison
from keras_pcp.fit.evaluator import REESTIMATION_SAMPLES, Evaluator
from keras_pcp.fit.live_model import LiveModel
from keras_pcp.fit.metric import Measure, Measuring
from keras_pcp.fit.variants import Variants
from keras_pcp.graph.cost import cost_of
from keras_pcp.graph.selection import Selection
from keras_pcp.strategies.rounds import Evaluation
from keras_pcp.surgery.masks import masked, replaced


@dataclass(frozen=True)
class Moment:
    """A moment of pruning, see `keras_pcp.strategies.Observation`."""

    step: int = 0
    number: int = 0
    count: int = 0
    target: float = 1.0
    next: int = 0


class Samples:
    """The validation samples. If they come from a function, `renew` draws others.

    Attributes:
        evaluator: evaluates the model on the samples; None if there are none.
        measure: what pruning compares.
        draw: number of draws so far, from 0.
    """

    def __init__(self, model: keras.Model, source: Any, measuring: Measuring, judge: keras.Model | None):
        self.model, self.source, self.measuring, self.judge = model, source, measuring, judge
        self.evaluator: Evaluator | None = None
        self.measure: Measure | None = None
        self.draw = 0
        if source is not None:
            self.measure = self._draw().measure

    def renew(self) -> None:
        """Draws other samples, if they come from a function."""
        if callable(self.source):
            self._draw()
            self.draw += 1

    def _draw(self) -> Evaluator:
        data = self.source() if callable(self.source) else self.source
        evaluator = Evaluator(self.model, data, self.measuring, self.judge, self.measure)
        evaluator.check()
        self.evaluator = evaluator
        return evaluator


class Observed:
    """What a strategy sees of a model. The first question at a moment prepares the model for all questions.

    Attributes:
        live: the model.
        samples: the validation samples.
        criteria: the criteria that the caller gave.
        at: the moment.
        kept: channels that the model computes with.
        macs: multiply-accumulates spent so far.
    """

    def __init__(self, live: LiveModel, samples: Samples, criteria: Sequence[Criterion]):
        self.live, self.samples, self.criteria = live, samples, criteria
        self.at, self.kept, self.macs = Moment(), live.uncut, 0.0
        self._macs = 0.0  # of one sample
        self._variants = Variants(live, samples.measuring.seed)
        self._comparison: Comparison | None = None
        self._until, self._fresh, self._ready = ExitStack(), False, False

    def open(self, at: Moment, kept: Selection, until: ExitStack, fresh: bool) -> None:
        """Begins a moment. Closing `until` restores the model. `fresh` draws other samples first."""
        self.at, self.kept, self._macs = at, kept, cost_of(self.live.graph).macs
        self._fresh, self._until, self._ready = fresh, until, False
        until.callback(self._variants.forget)

    def forget(self) -> None:
        """Drops everything that depends on the current weights and widths of the model."""
        self._comparison = None
        if self.samples.evaluator is not None:
            self.samples.evaluator.forget()

    step = property(lambda self: self.at.step)
    moment = property(lambda self: self.at.number)
    moments = property(lambda self: self.at.count)
    target = property(lambda self: self.at.target)
    next = property(lambda self: self.at.next)
    uncut = property(lambda self: self.live.uncut)
    seed = property(lambda self: self.samples.measuring.seed)

    @property
    def draw(self) -> int:
        """Number of draws of validation samples."""
        self._prepare()
        return self.samples.draw

    @property
    def parts(self) -> list[slice]:
        """Slices that divide the validation samples, counted in chunks."""
        evaluator = self._evaluator()
        if "parts" not in vars(evaluator):  # finding them takes one evaluation
            self.macs += self._macs * evaluator.count
        return evaluator.parts

    def scores(self, criterion: str | Criterion | None = None) -> Mapping[str, np.ndarray]:
        """Scores the channels of the unpruned model; cut channels get -inf."""
        self._prepare()
        found = self._scores(self.criteria[0] if criterion is None else criterion)
        return {name: _at(self.uncut.keep[name], scores) for name, scores in found.items()}

    def check_criteria(self) -> None:
        """Scores by every criterion, so that a criterion that does not work fails before training."""
        for criterion in self.criteria:
            self._scores(criterion)

    def evaluate(self, selection: Selection) -> Evaluation:
        """Evaluates the model as if pruned to `selection`, on all samples."""
        evaluator = self._evaluator()
        self.macs += self._macs * evaluator.count
        if selection == self.kept:
            return evaluator.evaluate()
        with replaced(self.live.model, self._changed(selection)):
            return evaluator.evaluate()

    def compare(self, selections: Mapping[str, Selection], part: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Evaluates the model as it is and as if pruned to each selection, on a part of the samples."""
        evaluator = self._evaluator()
        self._comparison = self._comparison or Comparison(evaluator, self.live.graph)
        spent = self._comparison.macs
        found = self._comparison.compare({key: self._changed(s) for key, s in selections.items()}, part)
        self.macs += self._comparison.macs - spent
        return found

    def _scores(self, criterion: str | Criterion) -> Mapping[str, np.ndarray]:
        evaluator = self.samples.evaluator
        data = None if evaluator is None else (evaluator.x, evaluator.y, evaluator.weight)
        return score_channels(self.live.model, self.live.graph, criterion, data=data, seed=self.seed)

    def _changed(self, selection: Selection) -> Mapping[int, np.ndarray]:
        before = self._variants.samples
        values = self._variants.values(selection, self.kept)
        self.macs += self._macs * (self._variants.samples - before)
        return values

    def _evaluator(self) -> Evaluator:
        self._prepare()
        if self.samples.evaluator is None:
            raise InvalidArgumentError(
                "the strategy evaluates the model, but says by `needs` that it needs no validation samples; set "
                "needs = Needs(validation=True) in the strategy, and pass validation_data"
            )
        return self.samples.evaluator

    def _prepare(self) -> None:
        """Masks all channels that are not kept, and re-estimates the statistics of batch normalization to match."""
        if self._ready:
            return
        self._ready = True
        if self._fresh and callable(self.samples.source):
            self.samples.renew()
            self._comparison = None
        self._until.enter_context(masked(self.live.model, self.live.graph, self.live.here(self.kept)))
        evaluator = self.samples.evaluator
        if evaluator is not None and self.samples.measuring.reestimate_batch_norm:
            self.macs += self._macs * min(evaluator.count, REESTIMATION_SAMPLES)
            self._until.enter_context(evaluator.reestimated())


def _at(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = np.full(len(mask), -np.inf)
    found[mask] = values
    return found

"""Rounds of a strategy on a model, and the search for widths without training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_pcp.criteria import Criterion, get, score_channels
from keras_pcp.errors import InvalidArgumentError, NotFiniteError, PruningError, UnsupportedModelError
from keras_pcp.fit.compare import Comparison, Values
from keras_pcp.fit.evaluator import REESTIMATION_SAMPLES, Evaluator
from keras_pcp.fit.metric import Measure, Monitor
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import CONSUME
from keras_pcp.graph.cost import Cost
from keras_pcp.graph.delivered import delivered_graph
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.graph.narrowing import narrowed
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.weight_masks import consumer_masks
from keras_pcp.repair.closed_form import Compensation
from keras_pcp.repair.least_squares import REFIT_SAMPLES, inputs_at_once, refit
from keras_pcp.select.budget import Limits, progress
from keras_pcp.strategies.rounds import Evaluation, State, Strategy
from keras_pcp.support import checks
from keras_pcp.support.changes import Journal, all_or_nothing, guarded
from keras_pcp.support.data import check_inputs, count_samples, take_samples, with_any_labels
from keras_pcp.support.models import check_finite
from keras_pcp.surgery.copies import prune_model
from keras_pcp.surgery.in_place import shrinking
from keras_pcp.surgery.masks import masked, replaced, with_zeros

# Samples for a refit that will be done again, and for what attempts count on.
_FEW_SAMPLES = 512

Criteria = str | Criterion | Sequence[str | Criterion]


def criteria_of(criterion: Criteria) -> list[Criterion]:
    """Returns the criteria for a name, a callable, or a sequence of them."""
    several = None if callable(criterion) else checks.items(criterion)
    found = [get(criterion)] if several is None else [get(c) for c in several]
    if not found:
        raise InvalidArgumentError("criterion is empty; give one or several")
    return found


@dataclass(frozen=True, eq=False)
class _Origin:
    """The model as it was before some rounds: a copy, its graph, and what had been removed by then."""

    model: keras.Model
    graph: ChannelGraph
    done: Selection


class Search:
    """Runs rounds of a strategy on a model, which computes as if pruned during a round and is as before after it.

    It is also what the strategy observes. Selections are in the numbering of the unpruned model.

    Attributes:
        graph, full, bounds: channel graph and cost of the unpruned model, and the absolute limits.
        state: where the run stands.
        measure: what pruning goes by.
        done: what has been removed from the model physically.
        live_graph: graph of the model as it is now.
        attempt_macs: multiply-accumulates that measuring has taken so far.
    """

    def __init__(
        self,
        model: keras.Model,
        limits: Limits,
        validation_data: Any,
        criterion: Criteria,
        strategy: Strategy,
        frozen_layers: Iterable[str],
        on_unknown: str,
        deliver: keras.Model | None = None,
        refit_data: Any = None,
        judge: keras.Model | None = None,
        monitor: Monitor | None = None,
    ):
        self.model, self.judge, self.strategy, self.criteria = model, judge, strategy, criteria_of(criterion)
        if strategy.one_criterion and len(self.criteria) > 1:
            raise InvalidArgumentError(
                f"{type(strategy).__name__} goes by one criterion, but {len(self.criteria)} are given; give one, or use "
                "Progressive, which attempts each group with all of them"
            )
        self.graph = self.live_graph = delivered_graph(model, deliver, on_unknown, frozen_layers)
        self.full: Cost = count_cost(self.graph)
        self.bounds = limits.absolute(self.full)
        self.state: State = strategy.init(self.graph, self.bounds)
        self.done = self.state.selection
        self._validation_data, self.refit_on = validation_data, refit_data
        if self.refit_on is not None:
            if self.graph.blocks:
                raise UnsupportedModelError(
                    f"refit_data needs a plain model, and {model.name!r} has blocks such as "
                    f"{self.graph.blocks[0]!r}; open them first: model = keras_pcp.inline_blocks(model)"
                )
            data = with_any_labels(self.refit_on)
            self.refit_on = take_samples(data, REFIT_SAMPLES, strategy.seed, "refit_data")
            check_inputs(model, self.refit_on[0], "refit_data")
            prune_model(model, self.graph, Selection())  # a refit needs copies: better fail now than later
        self._attempts: dict[int, tuple[Selection, Values]] = {}
        self._compensation: Compensation | None = None
        self._origin: _Origin | None = None
        self.measure: Measure | Monitor | None = monitor
        self._draw()
        self.measure = self.evaluator.measure
        self.attempt_macs = 0.0
        self._live_macs = self.full.macs
        self.scores()

    def _draw(self) -> None:
        data = self._validation_data() if callable(self._validation_data) else self._validation_data
        self._comparison = None
        strategy = self.strategy
        self.evaluator = Evaluator(self.model, data, strategy.samples, strategy.seed, self.judge, self.measure)
        self.evaluator.check()

    def renew_data(self) -> None:
        """Draws the samples anew if they come from a function; what was known of attempts is forgotten then."""
        if callable(self._validation_data):
            self._draw()
            self.state = replace(self.state, known={})

    def progress(self) -> float:
        """Returns how far pruning has come: 0 at the start, 1 or more when every limit holds."""
        return progress(count_cost(self.graph, self.state.selection), self.full, self.bounds)

    def run_round(self, target: float) -> None:
        """Runs one round.

        Raises:
            PruningError: the round removed nothing.
            NotFiniteError: the model has or gives NaN or infinite values; nothing is changed then.
        """
        before = self.state.selection
        if self.refit_on is not None and before != self.done:
            raise PruningError("between two rounds with a refit the model has to be shrunk")
        try:
            after = guarded(lambda: self._next_state(target))
            self._check_finite(after.rounds[-1].before if after.rounds else None)
        except NotFiniteError:
            raise
        except InvalidArgumentError as error:
            self._check_finite(self.evaluator.evaluate(), error)
            raise
        finally:
            self._attempts.clear()
            self._compensation = None
        self.state = after
        if self.state.selection == before:
            raise PruningError(
                f"no group can give more channels, but only {self.progress():.1%} of the way is done; lower min_channels "
                "and multiple_of, freeze fewer layers, or raise the limit"
            )

    def _next_state(self, target: float) -> State:
        with masked(self.model, self.live_graph, self.to_remove()), self._reestimated():
            return self.strategy.update(self.state, self, self.graph, self.bounds, target)

    def check_finite(self) -> None:
        """Raises NotFiniteError if weights of the model are NaN or infinite."""
        check_finite(self.model)

    def _check_finite(self, found: Evaluation | None, cause: Exception | None = None) -> None:
        """Raises NotFiniteError if what was found for the model as it is, or any of its weights, is not finite."""
        check_finite(self.model)
        if found and not np.isfinite([found.metric, found.loss]).all():
            raise NotFiniteError(
                f"model {self.model.name!r} gives {self.measure.text} {found.metric} and loss {found.loss} on "
                "validation_data"
            ) from cause

    def prune(self, more: bool = False, record: Callable[[Journal], None] = lambda journal: None) -> bool:
        """Makes the model physically smaller, and refits it if asked to; returns whether there was anything to do.

        Args:
            more: whether another round comes before the model is trained. Each refit begins from the model as it was
                before the first of such rounds, so that errors do not add up, and the last one takes the most samples.
            record: writes what has to be in step with the model.
        """
        if self.state.selection == self.done:
            return False
        origin, refit = (None, None) if self.refit_on is None else self._refit(more)
        done = self.state.selection
        live_graph = narrowed(self.graph, done)
        shrink = shrinking(self.model, self.live_graph, self.to_remove(), refit)

        def change(journal: Journal) -> None:
            shrink(journal)
            journal.set(self, "done", done)
            journal.set(self, "live_graph", live_graph)
            journal.set(self, "_live_macs", count_cost(live_graph).macs)
            journal.set(self, "_origin", origin)
            journal.set(self, "_comparison", None)
            record(journal)
            self.evaluator.forget()

        all_or_nothing(change)
        return True

    def _refit(self, more: bool) -> tuple[_Origin | None, list[np.ndarray]]:
        """Returns where the next refit begins, and the weights of the model after this one; nothing is changed yet."""
        origin = self._origin or _Origin(
            prune_model(self.model, self.live_graph, Selection()), self.live_graph, self.done
        )
        selection = self.state.selection.after(origin.done)
        small = prune_model(origin.model, origin.graph, selection)
        samples = _FEW_SAMPLES if more else REFIT_SAMPLES
        refit(origin.model, small, origin.graph, selection, self.refit_on, samples=samples)
        return origin if more else None, small.get_weights()

    def to_remove(self) -> Selection:
        """Returns what a shrink has to remove from the model as it is now, in its own numbering."""
        return self._relative(self.state.selection)

    # What a strategy observes.

    @property
    def parts(self) -> list[slice]:
        """Slices that divide the validation samples, counted in chunks."""
        if "parts" not in vars(self.evaluator):  # finding them takes one evaluation
            self.attempt_macs += self._live_macs * self.evaluator.count
        return self.evaluator.parts

    def scores(self) -> list[Mapping[str, np.ndarray]]:
        """Scores the channels that are left, by each criterion."""
        data, left = (self.evaluator.x, self.evaluator.y, self.evaluator.weight), self.to_remove().keep
        found = []
        for criterion in self.criteria:
            scores = score_channels(self.model, self.live_graph, criterion, data=data, seed=self.strategy.seed)
            found.append({name: scores[name][left[name]] for name in scores})
        return found

    def evaluate(self, selection: Selection) -> Evaluation:
        """Evaluates the model as if pruned to `selection`, on all samples."""
        self.attempt_macs += self._live_macs * self.evaluator.count
        if selection == self.state.selection:
            return self.evaluator.evaluate()
        with replaced(self.model, self._changed(selection)):
            return self.evaluator.evaluate()

    def compare(self, selections: Mapping[str, Selection], part: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Evaluates the model as it is and as if pruned to each selection, on a part of the samples."""
        self._comparison = self._comparison or Comparison(self.evaluator, self.live_graph)
        spent = self._comparison.macs
        found = self._comparison.compare({key: self._changed(s) for key, s in selections.items()}, part)
        self.attempt_macs += self._comparison.macs - spent
        return found

    def _changed(self, selection: Selection) -> Values:
        """Returns the weights that differ from those of the model as it is now, once for each attempt of a round."""
        if id(selection) not in self._attempts:
            present = self.state.selection.keep
            other = {n: mask for n, mask in selection.keep.items() if not np.array_equal(mask, present[n])}
            masks = consumer_masks(self.live_graph, self._relative(Selection(other)))
            values = with_zeros(self.model, masks)
            if self.refit_on is not None:
                values |= self._compensated(masks)
            self._attempts[id(selection)] = selection, values
        return self._attempts[id(selection)][1]

    def _compensated(self, masks: Mapping[int, np.ndarray]) -> Values:
        if self._compensation is None:
            kernels = {s.weight for group in self.live_graph for s in group.slices_of(CONSUME)}
            x = inputs_at_once(self.model, self.refit_on, _FEW_SAMPLES, self.strategy.seed)
            self._compensation = Compensation(self.model, kernels, x, seed=self.strategy.seed)
            self.attempt_macs += self._live_macs * count_samples(x)
        return self._compensation.values(masks)

    def _relative(self, selection: Selection) -> Selection:
        return selection.after(self.done)

    def _reestimated(self) -> AbstractContextManager[None]:
        if not self.strategy.reestimate_batch_norm:
            return nullcontext()
        self.attempt_macs += self._live_macs * min(self.evaluator.count, REESTIMATION_SAMPLES)
        return self.evaluator.reestimated()

"""A pruning strategy in one `fit`: when it is asked, and what its answers do to the model."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_pcp.deliver.report import PruningReport
from keras_pcp.errors import InvalidArgumentError, NotFiniteError
from keras_pcp.fit.clock import Clock
from keras_pcp.fit.preflight import beside, check_fractions, warn_of_weight_files
from keras_pcp.fit.run import Search
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.cost import Cost
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.select.budget import Limits
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal
from keras_pcp.surgery.in_place import check_live

# A shrink costs one retrace, about as long as eight training steps; so many steps should lie between two shrinks.
_STEPS_PER_SHRINK = 64
# At most this share of the model is removed between two training steps, unless a refit makes up for it.
_LARGEST_MOMENT = 0.25


class Session:
    """The state of one `fit`: made when it starts, dropped when it ends."""

    def __init__(self, callback: Any, limits: Limits):
        started = time.perf_counter()
        self.callback, self.model = callback, callback.model
        self.verbose = bool((callback.params or {}).get("verbose", 0))
        check_live(self.model)
        self.draws_before = len(getattr(callback.validation_data, "history", []))
        self.search = Search(
            self.model,
            limits,
            callback.validation_data,
            callback.criterion,
            callback.strategy,
            callback.frozen_layers,
            callback.on_unknown,
            callback.deliver,
            callback.refit_data,
            monitor=callback.monitor,
        )
        self.points: list[tuple[int, float]] | None = None
        self.round_share = 1.0
        self.step = self.epoch_start = 0
        self.steps_per_epoch: int | None = None
        self.report = _new_report(self.model, self.search.graph, self.search.full, self.search.bounds)
        self.report.monitor = self.search.measure.text
        check_fractions(self.model, callback.deliver, limits, _totals(self.search.full), self.search.bounds)
        if not self.report.reached:
            warn_of_weight_files(callback, self.search.bounds)
        self.diverged = ""
        self.clock = Clock(self.report.seconds)
        self.teaching = ExitStack()
        self.report.seconds["other"] += time.perf_counter() - started
        if self.verbose:
            print("\n".join([f"pruning compares attempts by {self.report.monitor}", *self.report.notes]), flush=True)

    def begin_epoch(self, epoch: int, params: Mapping[str, Any]) -> None:
        """Lays out the moments of pruning once the length of the training is known; prunes if one has come.

        Where the data does not tell its number of steps that is the only place for it: at the end of an epoch other
        callbacks would take what was measured before for that of the pruned model.
        """
        if self.points is None:
            epochs = params["epochs"] - epoch
            self.steps_per_epoch = params.get("steps")
            self.plan(epochs * (self.steps_per_epoch or 1))
            if self.callback.distillation:
                running = partial(internals.in_training, self.callback)
                self.teaching.enter_context(self.callback.distillation.teaching(self.model, running))
        with self.teaching_ended_by_errors():
            self.take_due()
        self.epoch_start = self.step

    def plan(self, total: int) -> None:
        """Lays the moments of pruning over the training; in epochs where the number of steps is not known."""
        begin = math.floor(self.callback.begin * total)
        end = max(begin, min(math.ceil(self.callback.end * total), total - 1))
        search = self.search
        if search.progress() >= 1:
            self.points = []
            return
        removed = 1 - min(bound / getattr(search.full, k) for k, bound in search.bounds.items())
        least = 1 if search.refit_on is not None else max(1, math.ceil(removed / _LARGEST_MOMENT))
        if end - begin < least or total < 2:
            unit = "steps" if self.steps_per_epoch else "epochs (the data does not tell its number of steps)"
            need = math.ceil((least + 1) / (self.callback.end - self.callback.begin))
            raise InvalidArgumentError(
                f"this fit is too short to prune in: it has {total} {unit}, of which {end - begin} lie between "
                f"begin={self.callback.begin} and end={self.callback.end} and leave time to recover; removing "
                f"{removed:.0%} needs at least {least}. Train for {need} or more, or move begin and end apart"
            )
        rounds = search.strategy.rounds_needed(search.graph, search.bounds)
        count = min(max(least, min(4, end - begin), (end - begin) // _STEPS_PER_SHRINK), max(rounds, least))
        self.round_share = 1 / max(rounds, count)
        moments = [begin + (end - begin) * i // count for i in range(count)]
        if self.carried_out(moments[-1]) >= total:
            raise InvalidArgumentError(
                f"this fit runs {self.model.steps_per_execution} of its {total} steps at a time (steps_per_execution), so "
                f"pruning at step {moments[-1]} would come after the last step; train for longer or lower it"
            )
        self.points = [(step, self.callback.schedule((i + 1) / count)) for i, step in enumerate(moments)]

    def carried_out(self, step: int) -> int:
        """Returns after which step a moment is carried out: at the end of an execution."""
        if not self.steps_per_epoch:
            return step
        at_once = getattr(self.model, "steps_per_execution", 1)
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.steps_per_epoch + min(self.steps_per_epoch, math.ceil(rest / at_once) * at_once)

    def end_execution(self) -> None:
        """Prunes after one step, or as many as the model runs at a time, if a moment has come."""
        self.clock.end_step()
        if self.steps_per_epoch:
            # The number that Keras gives is that of the first step (3.8) or as if the last execution had all steps.
            at_once = getattr(self.model, "steps_per_execution", 1)
            self.step = min(self.step + at_once, self.epoch_start + self.steps_per_epoch)
            with self.teaching_ended_by_errors():
                self.take_due()

    def end_epoch(self) -> None:
        """Counts epochs where the data does not tell its number of steps."""
        if not self.steps_per_epoch:
            self.step = self.epoch_start + 1

    @contextmanager
    def teaching_ended_by_errors(self) -> Iterator[None]:
        """Gives the model its own loss back if pruning fails."""
        try:
            yield
        except BaseException:
            self.teaching.close()
            raise

    def take_due(self) -> None:
        """Runs every pruning moment that has come: some rounds under masks, then one shrink.

        Where training has diverged nothing is pruned; the moment comes again after the next step.
        """
        due, search = [p for p in self.points if p[0] <= self.step], self.search
        if not due or search.progress() >= 1:
            return
        target = min(due[-1][1], 1.0)
        near = target - self.round_share / 2 if target < 1 else 1.0  # no round for a small rest, except the last
        try:
            self.run_rounds(near)
        except NotFiniteError as error:
            if not self.diverged:
                self.diverged, self.report.diverged = str(error), self.step
            if search.state.selection == search.done:
                return
        else:
            self.points = self.points[len(due) :]
            self.diverged, self.report.diverged = "", None
        self.report.attempt_macs = search.attempt_macs
        self.report.draws = [*getattr(self.callback.validation_data, "history", [])[self.draws_before :]]
        self.shrink_now()
        self.clock.expect_retrace()
        self.tell()

    def run_rounds(self, near: float) -> None:
        """Runs rounds until progress is at `near`; raises NotFiniteError where training has diverged."""
        search = self.search
        search.check_finite()
        if (self.step or search.state.rounds) and search.progress() < near:
            search.renew_data()
        while (reached := search.progress()) < near:
            with self.clock.measuring("attempts"):
                search.run_round(min(1.0, reached + self.round_share))
            self.report.rounds.append(replace(search.state.rounds[-1], step=self.step))
            if search.refit_on is not None:
                self.shrink_now(more=search.progress() < near)

    def shrink_now(self, more: bool = False) -> None:
        """Makes the model physically smaller, refits it if asked to, and brings the report up to date."""
        with self.clock.measuring("surgery"):
            changed = self.search.prune(more, self.record)
        if changed:
            _start_over(self.callback)

    def record(self, journal: Journal) -> None:
        """Brings the report up to date with the model."""
        search, report = self.search, self.report
        if self.step not in report.shrinks:
            journal.set(report, "shrinks", [*report.shrinks, self.step])
        journal.set(report, "selection", search.done)
        journal.set(report, "after", _totals(count_cost(search.live_graph)))
        widths = {g.name: (g.num_channels, int(search.done.keep[g.name].sum())) for g in search.graph}
        journal.set(report, "widths", widths)

    def tell(self) -> None:
        """Prints how far pruning has come."""
        if self.verbose:
            latest = self.report.rounds[-1] if self.report.rounds else None
            ratios = ", ".join(f"{k} {self.report.after[k] / self.report.before[k]:.1%}" for k in self.report.limits)
            metric = f"; metric {latest.before.metric:.4f} before the last round" if latest else ""
            print(
                f"\npruning at step {self.step}: {len(self.report.rounds)} rounds so far, {ratios}{metric}", flush=True
            )

    def end_training(self) -> None:
        """Ends distillation and warns if the limits were not reached."""
        self.teaching.close()
        if not self.report.reached:
            advice = "Call fit again with this callback, or let training go on longer"
            if self.diverged:
                advice = (
                    f"Training diverged, so nothing was pruned from step {self.report.diverged} on: {self.diverged}. Lower "
                    "the learning rate or clip gradients, and start again with the weights of a time before"
                )
            warnings.warn(
                f"training ended at step {self.step}, before pruning reached its limits "
                f"({', '.join(f'{k} {self.report.after[k]:,.0f} > {b:,.0f}' for k, b in self.report.limits.items())}). "
                + advice,
                stacklevel=2,
            )


def _new_report(model: keras.Model, graph: ChannelGraph, full: Cost, bounds: Mapping[str, float]) -> PruningReport:
    return PruningReport(
        model_name=model.name,
        limits=bounds,
        before=_totals(full),
        after=_totals(full),
        widths={g.name: (g.num_channels, g.num_channels) for g in graph},
        frozen=[(f.layer, f.num_channels, f.reason) for f in graph.frozen],
        notes=full.notes(),
    )


def _totals(cost: Cost) -> dict[str, float]:
    return {"macs": cost.macs, "params": cost.params, "bytes": cost.bytes}


def _start_over(callback: keras.callbacks.Callback) -> None:
    """Lets callbacks that remember a best value start over: it belonged to a network that no longer exists."""
    for other in beside(callback):
        if isinstance(other, keras.callbacks.EarlyStopping | keras.callbacks.ReduceLROnPlateau):
            other.on_train_begin()
        elif isinstance(other, keras.callbacks.ModelCheckpoint) and other.monitor_op is not None:
            other.best = np.inf if bool(other.monitor_op(0.0, 1.0)) else -np.inf

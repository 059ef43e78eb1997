"""Runs a pruning strategy in one `fit`: decides when to ask it, and carries out its answers."""

import numbers
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_pcp.deliver.report import PruningReport
from keras_pcp.errors import NotFiniteError
from keras_pcp.fit.clock import Clock
from keras_pcp.fit.cutting import recorded
from keras_pcp.fit.heartbeat import Heartbeat
from keras_pcp.fit.moments import Steps, announced, as_totals, moments
from keras_pcp.fit.observation import Moment
from keras_pcp.fit.preflight import check_fractions, warn_of_weight_files
from keras_pcp.fit.run import Run
from keras_pcp.fit.teaching import Teaching
from keras_pcp.graph.cost import cost_of
from keras_pcp.graph.delivered import delivered_graph
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.strategies.protocol import FitLength
from keras_pcp.support.changes import Journal
from keras_pcp.surgery.gates import check_gates
from keras_pcp.surgery.in_place import check_live


class Session:
    """The state of one `fit`. It is made when `fit` starts and dropped when `fit` ends.

    Attributes:
        callback: the callback, with its options and its model.
        run: runs the strategy.
        report: records what happens.
        clock: measures how long pruning takes.
        steps: the steps made so far.
        planned: whether the length of the `fit` is known, so that its moments could be planned.
        due: moments that are still to come.
        teaching: changes the loss.
        heartbeat: shows that pruning is at work.
        waiting: closes what shows that a step is being traced.
    """

    def __init__(self, callback: Any, limits: Limits):
        started = time.perf_counter()
        self.callback, model = callback, callback.model
        self.heartbeat, self.waiting = Heartbeat(bool((callback.params or {}).get("verbose", 0))), ExitStack()
        with self.heartbeat.during(lambda: f"looking at model {model.name!r}"):
            self._prepare(limits)
        self.report.seconds["other"] += time.perf_counter() - started
        compared = [f"pruning compares attempts by {self.report.monitor}"] if self.report.monitor else []
        self.say("\n".join([*compared, *self.report.notes]))

    def _prepare(self, limits: Limits) -> None:
        callback, model = self.callback, self.callback.model
        check_live(model)
        if callback.strategy.needs.holds:
            check_gates(model)
        graph = delivered_graph(model, callback.deliver, callback.on_unknown, callback.frozen_layers)
        problem = Problem.of(graph, limits)
        self.draws_before = len(getattr(callback.validation_data, "history", []))
        self.run = Run(
            model,
            problem,
            callback.strategy,
            callback.criterion,
            callback.validation_data,
            callback.measuring,
            callback.refit_data,
        )
        self.report = _new_report(model, problem)
        measure = self.run.seen.samples.measure
        self.report.monitor = "" if measure is None else measure.text
        check_fractions(model, callback.deliver, limits, as_totals(problem.full), problem.bounds)
        if not self.report.reached:
            warn_of_weight_files(callback.beside, problem.bounds)
        self.steps, self.planned = Steps(), False
        self.due: list[Moment] = []
        self.diverged = ""
        self.clock = Clock(self.report.seconds)
        self.teaching = Teaching(callback, self.run)

    def say(self, text: str) -> None:
        """Prints a text, unless `fit` is silent."""
        if text and self.heartbeat.show:
            print(text, flush=True)

    def begin_epoch(self, epoch: int, params: Mapping[str, Any]) -> None:
        """Plans the moments of pruning as soon as the length of training is known; prunes if one is due.

        If the data does not give its number of steps, this is the only place where the model is pruned. At the end of
        an epoch, other callbacks would take earlier measurements for those of the pruned model.
        """
        if not self.planned:
            steps = params.get("steps")
            self.steps = Steps(0, 0, steps, getattr(self.callback.model, "steps_per_execution", 1))
            self.plan((params["epochs"] - epoch) * (steps or 1))
            self.planned = True
            self.teaching.begin()
            if self.teaching.unknown:
                self.report.notes.append(self.teaching.unknown)
                self.say(self.teaching.unknown)
        with self.closed_by_errors():
            self.take_due()
        self.steps = self.steps.next_epoch()

    def plan(self, total: int) -> None:
        """Plans the moments of pruning, in steps; in epochs if the number of steps is not known."""
        run, callback = self.run, self.callback
        if run.progress >= 1:
            return
        refit = run.live.refit_on is not None
        fit = FitLength(total, self.steps.per_epoch, callback.begin, callback.end, refit, callback.schedule)
        self.due = moments(run.strategy.when(run.problem, fit), fit, self.steps)
        self.say(announced(self.due, run.strategy.rounds(run.problem), total, self.steps))

    def begin_step(self) -> None:
        """Starts timing a step. One that is traced may take long."""
        self.waiting.close()
        if self.clock.retrace or not self.clock.usual:
            self.waiting.enter_context(self.heartbeat.during(lambda: "tracing the training step"))
        self.clock.begin_step()

    def end_execution(self) -> None:
        """Prunes if a moment is due. Called after each step, or after as many steps as the model runs at a time."""
        self.waiting.close()
        self.clock.end_step()
        if self.steps.per_epoch:
            self.steps = self.steps.after_execution()
            with self.closed_by_errors():
                self.take_due()

    def end_epoch(self, logs: Mapping[str, Any]) -> None:
        """Counts epochs if the data does not give its number of steps, and keeps what Keras logs."""
        self.steps = self.steps.after_epoch()
        real = {name: value for name, value in logs.items() if isinstance(value, numbers.Real)}  # others add anything
        self.report.logs = {name: float(value) for name, value in real.items()}

    def close(self) -> None:
        """Restores the loss of the model, and the channels that are held at zero."""
        self.waiting.close()
        self.teaching.close()
        self.run.live.release()

    @contextmanager
    def closed_by_errors(self) -> Iterator[None]:
        """Closes the session if pruning fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def take_due(self) -> None:
        """Asks the strategy if a moment is due: some rounds under masks, then one cut.

        If training has diverged, nothing is pruned, and the moment is due again after the next step.
        """
        come = [m for m in self.due if m.step <= self.steps.made]
        if not come:
            return
        run = self.run
        before = len(run.rounds)
        try:
            with self.heartbeat.during(self.so_far):
                self.ask(come[-1])
        except NotFiniteError as error:
            if not self.diverged:
                self.diverged, self.report.diverged = str(error), self.steps.made
            if run.kept == run.live.uncut:
                return
        else:
            self.due = self.due[len(come) :]
            self.diverged, self.report.diverged = "", None
        self.report.attempt_macs = run.seen.macs
        self.report.draws = [*getattr(self.callback.validation_data, "history", [])[self.draws_before :]]
        with self.heartbeat.during(lambda: "cutting"):
            self.carry_out()
        if len(run.rounds) > before:
            self.clock.expect_retrace()
            self.tell()

    def ask(self, moment: Moment) -> None:
        """Asks the strategy until it has finished a moment; raises NotFiniteError if training has diverged."""
        run, fresh = self.run, True
        at = replace(moment, step=self.steps.made)
        run.check_finite()
        while True:
            with self.clock.measuring("attempts"):
                action = run.ask(at, fresh)
            self.callback.state = run.state
            if action is None:
                return
            fresh = False
            self.report.rounds.append(run.rounds[-1])
            if action.how != "cut" or action.weights or action.correct or run.live.refit_on is not None:
                self.carry_out(action, action.more)
            if not action.more:
                return

    def carry_out(self, action: Any = None, more: bool = False) -> None:
        """Changes the model as decided, and updates the report and the loss."""
        measured = recorded(self.run, self.report, self.steps.made) if action and action.correct else nullcontext()
        with self.clock.measuring("surgery"), measured:
            if self.run.carry_out(action, more, self.record):
                _start_over(self.callback)
        self.teaching.refresh()

    def record(self, journal: Journal) -> None:
        """Updates the report to match the model."""
        live, report = self.run.live, self.report
        if self.steps.made not in report.shrinks:
            journal.set(report, "shrinks", [*report.shrinks, self.steps.made])
        journal.set(report, "selection", live.uncut)
        cost = cost_of(live.graph)
        journal.set(report, "after", as_totals(cost))
        layers = {name: (old, cost.layers[name].macs) for name, (old, _) in report.layers.items()}
        journal.set(report, "layers", layers)
        journal.set(report, "logs", {})  # they are of the model before
        widths = {g.name: (g.num_channels, int(live.uncut.keep[g.name].sum())) for g in live.whole}
        journal.set(report, "widths", widths)

    def so_far(self) -> str:
        """Returns how far pruning has come, and how long the rest may take if it goes on like this."""
        way, spent = self.run.progress, self.clock.seconds["attempts"] + self.clock.seconds["surgery"]
        left = f", about {spent * (1 - way) / way:.0f} s left" if way > 0 and spent else ""
        return f"round {len(self.run.rounds) + 1}, {way:.0%} of the way{left}"

    def tell(self) -> None:
        """Prints how far pruning has come."""
        latest = self.report.rounds[-1] if self.report.rounds else None
        ratios = ", ".join(f"{k} {self.report.after[k] / self.report.before[k]:.1%}" for k in self.report.limits)
        metric = f"; metric {latest.before.metric:.4f} before the last round" if latest and latest.before else ""
        self.say(f"\npruning at step {self.steps.made}: {len(self.report.rounds)} rounds so far, {ratios}{metric}")

    def end_training(self) -> None:
        """Closes the session and warns if the limits were not reached."""
        self.close()
        if not self.report.reached:
            advice = "Call fit again with this callback, or train for longer"
            if self.diverged:
                advice = (
                    f"Training diverged, so nothing was pruned from step {self.report.diverged} on: {self.diverged}. Lower "
                    "the learning rate or clip gradients, and start again from earlier weights"
                )
            warnings.warn(
                f"training ended at step {self.steps.made}, before pruning reached its limits "
                f"({', '.join(f'{k} {self.report.after[k]:,.0f} > {b:,.0f}' for k, b in self.report.limits.items())}). "
                + advice,
                stacklevel=2,
            )


def _new_report(model: keras.Model, problem: Problem) -> PruningReport:
    return PruningReport(
        model_name=model.name,
        limits=problem.bounds,
        before=as_totals(problem.full),
        after=as_totals(problem.full),
        widths={g.name: (g.num_channels, g.num_channels) for g in problem.graph},
        layers={name: (layer.macs, layer.macs) for name, layer in problem.full.layers.items()},
        frozen=[(f.layer, f.num_channels, f.reason) for f in problem.graph.frozen],
        notes=problem.full.notes(),
    )


def _start_over(callback: Any) -> None:
    """Makes callbacks forget their best value, because it belonged to a network that no longer exists."""
    for other in callback.beside:
        if isinstance(other, keras.callbacks.EarlyStopping | keras.callbacks.ReduceLROnPlateau):
            other.on_train_begin()
        elif isinstance(other, keras.callbacks.ModelCheckpoint) and other.monitor_op is not None:
            other.best = np.inf if bool(other.monitor_op(0.0, 1.0)) else -np.inf

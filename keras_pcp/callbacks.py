"""The Keras callback: a thin shell that runs a strategy inside an ordinary `fit`."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_pcp import internals
from keras_pcp.channels import ChannelGraph
from keras_pcp.cost import Cost, Limits, count_cost
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.live import check_live
from keras_pcp.recovery import Distillation
from keras_pcp.report import PruningReport
from keras_pcp.schedules import cubic
from keras_pcp.search import Criteria, Search, criteria_of
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.strategies.state import Strategy

# A shrink costs one retrace, about as long as eight training steps; so many steps should lie between two shrinks.
_STEPS_PER_SHRINK = 64
# At most this share of the model is removed between two training steps, unless a refit makes up for it.
_LARGEST_MOMENT = 0.25


class ProgressivePruning(keras.callbacks.Callback):
    """Prunes the model while it trains; after `fit`, the same model object is at or below the limits.

    Rounds of attempting, selecting and pruning are spread over the part of the training between `begin` and `end`.
    The model is made physically smaller in place, so later steps are faster. `report` records every round.

    If training stops before `end`, limits may be missed: a warning tells, and `report.reached` is False. Another `fit` of
    the same model with the same callback goes on to the same limits, which are absolute from the first `fit` on. A new
    callback takes fractions of the model as it is then.

    Args:
        max_macs: multiply-accumulates of one sample: a float in (0, 1) is a fraction of the unpruned model, an int is
            absolute. At least one limit is needed; all that are given will hold.
        max_params: number of all weights, trainable or not, likewise.
        max_bytes: bytes of the weights in their own types, likewise.
        validation_data: labelled samples for the attempts: (x, y), (x, y, sample_weight), or a dataset of such batches; or
            a function without arguments that returns them, which is called again before each moment of pruning. Keep them
            apart from training and test data: the widths are chosen by them.
        criterion: which channels of a group go first: a name in `keras_pcp.criteria.BY_NAME` or a callable; or several,
            of which each attempt of `Progressive` takes the best (controls go by one). Criteria that read gradients
            or features do so on `validation_data`, in every round.
        strategy: a `Progressive` with other settings than the default, or one of `keras_pcp.strategies.controls`.
        distillation: lets the unpruned model teach the pruned one in this `fit`.
        reconstruction_data: some samples of the training data, (x, y), or x alone if that is one array (labels are not
            used). If given, the layers that read pruned channels are refit by least squares after each round, see
            `reconstruct`, and attempts are measured with the layers that read the channels making up for them as far as
            they can.
        deliver: a model that shares layers with the one in `fit`, such as one of its heads. Only what it has is counted,
            and only its channels are removed. Outputs that it does not have take part in attempts and gradients unless
            `validation_data` gives them sample weight 0.
        frozen_layers: names of layers whose output channels must stay.
        on_unknown: `"error"` or `"freeze"`, see `build_graph`.
        begin: fraction of the training, in [0, 1), at which pruning begins.
        end: fraction of the training, in (begin, 1], by which the limits are reached; the rest is for recovery. Between
            the two there must be a step for each quarter of the model that goes (one step with `reconstruction_data`);
            an epoch, where the data does not tell its number of steps.
        schedule: how fast to prune between `begin` and `end`: a function from [0, 1] to [0, 1] that ends at 1.

    Raises:
        InvalidArgumentError: a limit or option is out of range (at once), or the data does not fit the model, or the
            training is too short (when `fit` starts, before the first step).
        LimitError: the limits cannot be reached (says what can), or MACs cannot be counted for want of fixed input sizes.
        PruningError: in the middle of `fit`: no group can give more channels, though the limits are not reached yet.
        UnsupportedModelError: the model has no functional graph, an unknown layer, or an unsupported distribution.

    `logs` and `History` get `macs`, `params` and `pruning_ratio` each epoch. After each shrink, `EarlyStopping`,
    `ReduceLROnPlateau` and `ModelCheckpoint` start over with their best value, because it belonged to another network.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((8, 8, 1))
        >>> y = keras.layers.Conv2D(16, 3, activation="relu")(x)
        >>> y = keras.layers.Conv2D(16, 3, activation="relu")(y)
        >>> y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(y))
        >>> model = keras.Model(x, y)
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        >>> data, labels = np.random.rand(64, 8, 8, 1), np.arange(64) % 2
        >>> pruning = keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=(data, labels))
        >>> _ = model.fit(data, labels, epochs=4, verbose=0, callbacks=[pruning])
        >>> pruning.report.reached
        True

    References:
        Guo et al., Model Compression using Progressive Channel Pruning, arXiv 2507.04792.
    """

    def __init__(
        self,
        *,
        max_macs: float | int | None = None,
        max_params: float | int | None = None,
        max_bytes: float | int | None = None,
        validation_data: Any,
        criterion: Criteria = "l1",
        strategy: Strategy | None = None,
        distillation: Distillation | None = None,
        reconstruction_data: Any = None,
        deliver: keras.Model | None = None,
        frozen_layers: Iterable[str] = (),
        on_unknown: str = "error",
        begin: float = 0.1,
        end: float = 0.6,
        schedule: Callable[[float], float] = cubic,
    ):
        super().__init__()
        self.limits = Limits(max_macs, max_params, max_bytes)
        self.validation_data = validation_data
        self.criterion = criteria_of(criterion)
        self.strategy = strategy or Progressive()
        self.distillation, self.reconstruction_data = distillation, reconstruction_data
        self.deliver, self.frozen_layers = deliver, frozen_layers
        self.on_unknown = on_unknown
        if not 0 <= begin < end <= 1:
            raise InvalidArgumentError(f"need 0 <= begin < end <= 1, got begin={begin!r}, end={end!r}")
        if not math.isclose(schedule(1.0), 1.0):
            raise InvalidArgumentError(f"schedule(1.0) must be 1.0, got {schedule(1.0)!r}")
        self.begin, self.end, self.schedule = begin, end, schedule
        self.report: PruningReport | None = None
        self._run: _Run | None = None
        self._pruned: keras.Model | None = None

    def on_train_begin(self, logs=None):
        """Checks everything and builds the graph, before the first step."""
        if self._run:  # of a fit that was interrupted
            self._run.teaching.close()
        limits = self.limits
        if self.report and self._pruned is self.model:  # fractions are of the model as it was in the first fit
            limits = Limits(**{f"max_{k}": max(1, int(bound)) for k, bound in self.report.limits.items()})
        self._run = _Run(self, limits)
        self.report, self._pruned = self._run.report, self.model

    def on_epoch_begin(self, epoch, logs=None):
        """Lays out the moments of pruning in the first epoch; prunes if a moment has come."""
        self._run.begin_epoch(epoch, self.params)

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the clock of a step."""
        self._run.clock.begin_step()

    def on_train_batch_end(self, batch, logs=None):
        """Prunes if a moment has come."""
        self._run.end_execution()

    def on_epoch_end(self, epoch, logs=None):
        """Adds costs to the logs."""
        self._run.end_epoch()
        if logs is not None:
            logs["macs"] = float(self.report.after["macs"])
            logs["params"] = float(self.report.after["params"])
            logs["pruning_ratio"] = float(self.report.pruning_ratio)

    def on_train_end(self, logs=None):
        """Ends the run; warns if the limits were not reached. Call it yourself after a fit that was interrupted."""
        if self._run:
            self._run.end_training()
        self._run = None


class _Run:
    """The state of one `fit`: made when it starts, dropped when it ends."""

    def __init__(self, callback: ProgressivePruning, limits: Limits):
        started = time.perf_counter()
        self.callback, self.model = callback, callback.model
        self.verbose = bool((callback.params or {}).get("verbose", 0))
        check_live(self.model)
        self.draws_before = len(getattr(callback.validation_data, "history", []))
        self.search = Search(
            self.model, limits, callback.validation_data, callback.criterion, callback.strategy,
            callback.frozen_layers, callback.on_unknown, callback.deliver,
            callback.reconstruction_data,
        )  # fmt: skip
        self.points: list[tuple[int, float]] | None = None
        self.round_share = 1.0
        self.step = self.epoch_start = 0
        self.steps_per_epoch: int | None = None
        self.report = _new_report(self.model, self.search.graph, self.search.full, self.search.bounds)
        self.clock = _Clock(self.report.seconds)
        self.teaching = ExitStack()
        self.report.seconds["other"] += time.perf_counter() - started

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
                self.teaching.enter_context(self.callback.distillation.teaching(self.model))
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
        """Runs every pruning moment that has come: some rounds under masks, then one shrink."""
        due, search = [p for p in self.points if p[0] <= self.step], self.search
        if not due or search.progress() >= 1:
            return
        self.points = self.points[len(due) :]
        target = min(due[-1][1], 1.0)
        near = target - self.round_share / 2 if target < 1 else 1.0  # no round for a small rest, except the last
        if (self.step or search.state.rounds) and search.progress() < near:
            search.renew_data()
        while (reached := search.progress()) < near:
            with self.clock.measuring("attempts"):
                search.run_round(min(1.0, reached + self.round_share))
            self.report.rounds.append(replace(search.state.rounds[-1], step=self.step))
            if search.refit_on is not None:
                self.shrink_now(more=search.progress() < near)
        self.report.attempt_macs = search.attempt_macs
        self.report.draws = [*getattr(self.callback.validation_data, "history", [])[self.draws_before :]]
        self.shrink_now()
        self.clock.expect_retrace()
        self.tell()

    def shrink_now(self, more: bool = False) -> None:
        """Makes the model physically smaller, refits it if asked to, and brings the report up to date."""
        search, report = self.search, self.report
        with self.clock.measuring("surgery"):
            changed = search.prune(more)
        if not changed:
            return
        if self.step not in report.shrinks:
            report.shrinks.append(self.step)
        report.selection = search.done
        report.after = _totals(count_cost(search.live_graph))
        report.widths = {g.name: (g.num_channels, int(search.done.keep[g.name].sum())) for g in search.graph}
        _start_over(self.model)

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
            warnings.warn(
                f"training ended at step {self.step}, before pruning reached its limits "
                f"({', '.join(f'{k} {self.report.after[k]:,.0f} > {b:,.0f}' for k, b in self.report.limits.items())}). "
                "Call fit again with this callback, or let training go on longer",
                stacklevel=2,
            )


class _Clock:
    """Books the callback's own time, and what a step after a shrink takes beyond the usual step."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.started, self.usual, self.retrace = seconds, 0.0, [], False

    def begin_step(self) -> None:
        """Notes the time."""
        self.started = time.perf_counter()

    def end_step(self) -> None:
        """Books a step as usual, or what it took more as retracing."""
        spent = time.perf_counter() - self.started
        if self.retrace:
            self.seconds["retracing"] += max(0.0, spent - (float(np.median(self.usual)) if self.usual else 0.0))
            self.retrace = False
        else:
            self.usual = [*self.usual[-20:], spent]

    def expect_retrace(self) -> None:
        """Says that the next step retraces."""
        self.retrace = True

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Books the time spent in the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started


def _new_report(model: keras.Model, graph: ChannelGraph, full: Cost, bounds: Mapping[str, float]) -> PruningReport:
    return PruningReport(
        model_name=model.name,
        limits=bounds,
        before=_totals(full),
        after=_totals(full),
        widths={g.name: (g.num_channels, g.num_channels) for g in graph},
        frozen=[(f.layer, f.num_channels, f.reason) for f in graph.frozen],
    )


def _totals(cost: Cost) -> dict[str, float]:
    return {"macs": cost.macs, "params": cost.params, "bytes": cost.bytes}


def _start_over(model: keras.Model) -> None:
    """Lets callbacks that remember a best value start over: it belonged to a network that no longer exists."""
    monitors = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)
    for callback in internals.living(monitors):
        if callback.model is model:
            callback.on_train_begin()
    for callback in internals.living((keras.callbacks.ModelCheckpoint,)):
        if callback.model is model and callback.monitor_op is not None:
            callback.best = np.inf if bool(callback.monitor_op(0.0, 1.0)) else -np.inf

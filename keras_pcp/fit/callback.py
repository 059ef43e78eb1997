"""The Keras callbacks: thin shells that run a strategy inside an ordinary `fit`."""

from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_pcp.deliver.report import PruningReport
from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.fit.metric import Measuring
from keras_pcp.fit.run import Criteria, criteria_of
from keras_pcp.fit.session import Session
from keras_pcp.graph.build import UNKNOWN, OnUnknown
from keras_pcp.repair.distillation import Distillation
from keras_pcp.schedules import check_schedule, cubic
from keras_pcp.select.problem import Limits
from keras_pcp.strategies.adaptive import Adaptive
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.strategies.protocol import Strategy, check_strategy
from keras_pcp.support import checks, internals
from keras_pcp.support.data import check_source, with_any_labels
from keras_pcp.support.models import check_model


class Pruning(keras.callbacks.Callback):
    """Prunes the model while it trains; after `fit`, the same model object is at or below the limits.

    A strategy decides which channels are removed, and when. It works in the part of training between `begin` and `end`.
    The model is made physically smaller in place, so later steps are faster. `report` records every round.
    `ProgressivePruning` is this callback with the strategy that suits most models.

    If training stops before `end`, limits may be missed. Then a warning says so, and `report.reached` is False. To
    continue, call `fit` of the same model again with the same callback. The limits stay the same: they are absolute
    from the first `fit` on.

    A new callback refuses fractions for a model that was pruned before in this process, because they could mean the
    unpruned model or the current model. Give ints instead. A file that Keras saves does not say what the model cost
    before it was pruned, so a fraction is a fraction of the loaded model. A warning says so if its optimizer has made
    steps (after a new `compile` it has not). If a script may continue from a checkpoint, give ints and save whole
    models. `fit` warns if `BackupAndRestore`, or `ModelCheckpoint` with `save_weights_only`, is among its callbacks.

    If the weights or the measurements are not finite at a moment of pruning, training has diverged. Nothing is pruned
    until they are finite again. `report.diverged` and a warning at the end of training say so.

    Args:
        strategy: one of `keras_pcp.strategies`, or a custom one.
        max_macs: multiply-accumulates of one sample. A float in (0, 1) is a fraction of the unpruned model, an int is
            absolute. At least one limit is needed. The pruned model meets all that are given.
        max_params: number of all weights, trainable or not, likewise.
        max_bytes: bytes of the weights in their own types, likewise.
        validation_data: labelled samples for the attempts: (x, y), (x, y, sample_weight), or a dataset of such batches.
            Or a function without arguments that returns them; it is called again before each moment of pruning. Keep
            them apart from training and test data, because they decide the widths.
        criterion: decides which channels of a group are removed first: a name in `keras_pcp.criteria.BY_NAME` or a
            callable. Or several of them, of which each attempt of `Progressive` takes the best (other strategies use
            one). Criteria that read gradients or features do so on `validation_data`, in every round.
        measuring: how the model is measured: number of validation samples, what is compared (`monitor`), seed.
        distillation: lets the unpruned model teach the pruned one in this `fit`.
        refit_data: some samples of the training data, (x, y), or x alone if that is one array (labels are not used). If
            given, the layers that read pruned channels are refit by least squares after each round, see `refit`. In
            attempts, these layers make up for the missing channels as far as they can.
        deliver: a model that shares layers with the one in `fit`, such as one of its heads. Only the layers of
            `deliver` are counted, and only its channels are removed. Outputs that it does not have take part in
            attempts and gradients unless `validation_data` gives them sample weight 0.
        frozen_layers: names of layers that keep their width. They still train.
        on_unknown: `"error"` or `"freeze"`, see `build_graph`.
        begin: fraction of training, in [0, 1), at which pruning begins.
        end: fraction of training, in (begin, 1], by which the limits are reached; the rest is for recovery. Between the
            two there must be a step for each quarter of the model that is removed (one step with `refit_data`). If the
            data does not give its number of steps, epochs count instead of steps.
        schedule: how fast to prune between `begin` and `end`: a function from [0, 1] to [0, 1] that ends at 1. The model is
            cut at a few moments, between which the schedule goes equally far; each cut goes as far as the schedule will
            have gone by the next one. So if there is one moment, everything goes at `begin`.

    Raises:
        InvalidArgumentError: at once if a limit or option is out of range. When `fit` starts, before the first step, if
            the data does not fit the model, `monitor` is unknown or has no default, another callback prunes too, or
            training is too short.
        LimitError: the limits cannot be reached (the message says what can), or MACs are limited and those of a layer
            are not known.
        PruningError: in the middle of `fit`, no group can give more channels, though the limits are not reached yet.
        UnsupportedModelError: the model has no functional graph, an unknown layer, or an unsupported distribution.

    `state` is the latest state of the strategy. `logs` and `History` get `macs`, `params` and `pruning_ratio` each epoch.
    After each shrink, `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` forget their best value, because it
    belonged to another network.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> data = np.random.rand(64, 8), np.random.rand(64, 2)
        >>> pruning = keras_pcp.Pruning(keras_pcp.strategies.OneShot(), max_params=0.5, validation_data=data)
        >>> _ = model.fit(*data, epochs=4, verbose=0, callbacks=[pruning])
        >>> pruning.report.reached
        True
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        max_macs: float | int | None = None,
        max_params: float | int | None = None,
        max_bytes: float | int | None = None,
        validation_data: Any = None,
        criterion: Criteria = "l1",
        measuring: Measuring | None = None,
        distillation: Distillation | None = None,
        refit_data: Any = None,
        deliver: keras.Model | None = None,
        frozen_layers: Iterable[str] = (),
        on_unknown: OnUnknown = "error",
        begin: float = 0.1,
        end: float = 0.6,
        schedule: Callable[[float], float] = cubic,
    ):
        super().__init__()
        self.strategy = check_strategy(strategy)
        self.limits = Limits(max_macs, max_params, max_bytes)
        if validation_data is not None or self.strategy.needs.validation:
            check_source(validation_data, "validation_data", function=True)
        self.validation_data, self.refit_data = validation_data, refit_data
        self.criterion = criteria_of(criterion)
        self.measuring = Measuring() if measuring is None else measuring
        checks.instance("measuring", self.measuring, Measuring, "a keras_pcp.Measuring")
        if refit_data is not None:
            check_source(with_any_labels(refit_data), "refit_data")
        if distillation is not None:
            checks.instance("distillation", distillation, Distillation, "a keras_pcp.Distillation")
        self.distillation = distillation
        self.deliver = None if deliver is None else check_model("deliver", deliver)
        self.frozen_layers = checks.names("frozen_layers", frozen_layers)
        self.on_unknown = checks.choice("on_unknown", on_unknown, UNKNOWN)
        self.begin = checks.number("begin", begin, "[0, 1)")
        self.end = checks.number("end", end, f"({self.begin}, 1]")
        check_schedule(schedule)
        self.schedule = schedule
        self._report: PruningReport | None = None
        self.state: Any = None
        self.beside: list[keras.callbacks.Callback] = []
        self._run: Session | None = None
        self._pruned: keras.Model | None = None

    @property
    def report(self) -> PruningReport:
        """The record of the latest `fit`, or of the one that is running; raises PruningError before the first one."""
        if self._report is None:
            raise PruningError(
                "there is no report before training; pass the callback to model.fit(callbacks=[...]) first"
            )
        return self._report

    @property
    def _session(self) -> Session:
        assert self._run is not None  # Keras has called `on_train_begin`
        return self._run

    def on_train_begin(self, logs=None):
        """Checks everything and builds the graph, before the first step."""
        self.beside = internals.list_that_calls(self)
        if self in self.beside:
            self.beside.remove(self)  # it may be in the list twice
        rivals = [one for one in self.beside if isinstance(one, Pruning)]
        if rivals:
            raise InvalidArgumentError(
                f"this fit has {1 + len(rivals)} pruning callbacks, which would prune the same layers; give all limits to "
                "one of them (max_macs, max_params and max_bytes can be combined), or prune in one fit after the other"
            )
        if self._run:  # left over from a fit that was interrupted
            self._run.close()
        limits = self.limits
        if self._report and self._pruned is self.model:  # fractions mean the model as it was in the first fit
            limits = Limits(**{f"max_{k}": max(1, int(bound)) for k, bound in self._report.limits.items()})
        self._run = Session(self, limits)
        self._report, self._pruned = self._run.report, self.model

    def on_epoch_begin(self, epoch, logs=None):
        """Plans the moments of pruning in the first epoch; prunes if one is due."""
        self._session.begin_epoch(epoch, self.params)

    def on_train_batch_begin(self, batch, logs=None):
        """Starts timing a step."""
        self._session.begin_step()

    def on_train_batch_end(self, batch, logs=None):
        """Prunes if a moment of pruning is due."""
        self._session.end_execution()

    def on_epoch_end(self, epoch, logs=None):
        """Adds costs to the logs."""
        self._session.end_epoch(logs or {})
        if logs is not None:
            logs["macs"] = float(self.report.after["macs"])
            logs["params"] = float(self.report.after["params"])
            logs["pruning_ratio"] = float(self.report.pruning_ratio)

    def on_train_end(self, logs=None):
        """Ends the run; warns if the limits were not reached. Call it yourself after a fit that was interrupted."""
        if self._run:
            self._run.end_training()
        self._run = None


class ProgressivePruning(Pruning):
    """Prunes the model while it trains, by progressive channel pruning: `Pruning` with the strategy `Progressive`.

    After `fit`, the same model object is at or below the limits. Rounds of attempting, selecting and pruning run at a
    few moments between `begin` and `end`, most of them early, as `schedule` says.

    Args:
        strategy: a `keras_pcp.strategies.Progressive` with options other than the defaults.
        **options: the options of `Pruning`: `max_macs`, `max_params`, `max_bytes` (at least one), `validation_data`
            (required), `criterion`, `measuring`, `distillation`, `refit_data`, `deliver`, `frozen_layers`,
            `on_unknown`, `begin`, `end` and `schedule`. The same errors are raised.

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

    def __init__(self, *, strategy: Strategy | None = None, **options: Any):
        super().__init__(Progressive() if strategy is None else strategy, **options)


class AdaptivePruning(Pruning):
    """Prunes the model while it trains, by adaptive channel pruning: `Pruning` with the strategy `Adaptive`.

    After `fit`, the same model object is at or below the limits. Redundant channels are found from the weights, so no
    validation data is needed. Each is decorrelated from the others before it is removed. Then the layers that read it make
    up for it as far as they can.

    Args:
        strategy: a `keras_pcp.strategies.Adaptive` with options other than the defaults.
        criterion: as in `Pruning`.
        **options: the other options of `Pruning`: `max_macs`, `max_params`, `max_bytes` (at least one), `validation_data`
            (only for criteria that read gradients or features), `distillation`, `deliver`, `frozen_layers`, `on_unknown`,
            `begin`, `end`, `schedule` and so on. The same errors are raised.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((8, 8, 1))
        >>> y = keras.layers.Conv2D(16, 3, activation="relu")(x)
        >>> y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(y))
        >>> model = keras.Model(x, y)
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> pruning = keras_pcp.AdaptivePruning(max_macs=0.5)
        >>> _ = model.fit(np.random.rand(64, 8, 8, 1), np.arange(64) % 2, epochs=4, verbose=0, callbacks=[pruning])
        >>> pruning.report.reached
        True

    References:
        Liu et al., Adaptive Channel Pruning for Trainability Protection, PRCV 2023, doi 10.1007/978-981-99-8549-4_12.
    """

    def __init__(self, *, strategy: Strategy | None = None, criterion: Criteria = "orthogonality", **options: Any):
        super().__init__(Adaptive() if strategy is None else strategy, criterion=criterion, **options)

"""Measures a model on validation samples between two training steps, and leaves the model unchanged."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.errors import InvalidArgumentError, NotFiniteError
from keras_pcp.fit.metric import Measure, Measuring, Output, is_own, resolve
from keras_pcp.graph.segments import segment
from keras_pcp.graph.trace import tensor_sizes, trace
from keras_pcp.repair.batch_norm import BatchStatistics, reestimated
from keras_pcp.strategies.rounds import Evaluation
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal, temporarily
from keras_pcp.support.data import check_inputs, count_samples, take_samples

_BATCH, _FEW = 256, 32
_CHUNK, _LEAST_CHUNKS = 16, 8
_PART_BYTES = 2**27
REESTIMATION_SAMPLES, _REESTIMATION_BATCH = 512, 64


class Evaluator:
    """Evaluates a compiled model on fixed samples. Metric states and weights are restored afterwards.

    The metric is what the monitor asks for, with a sign that makes higher better. Metrics that only a custom
    `train_step` updates are not available here. Positions that the model masks do not count, as in Keras. The loss does
    not include regularization terms. Loss and metrics are those that `judge` was compiled with. `judge` is the model
    itself, or the model that it is a copy of. A custom `test_step` replaces this evaluation, and a function given as
    monitor replaces both. Their results are used unchanged. If they give no loss, the loss is minus the metric.
    """

    def __init__(
        self,
        model: keras.Model,
        validation_data: Any,
        measuring: Measuring,
        judge: keras.Model | None = None,
        measure: Measure | None = None,
    ):
        self.model, self.judge, self.measuring = model, judge or model, measuring
        if measure is not None:
            self.measure = measure
        arrays = take_samples(validation_data, measuring.samples, measuring.seed, "validation_data")
        check_inputs(model, arrays[0], "validation_data")
        self.count = count_samples(arrays[:2], "validation_data")
        order = np.random.default_rng(measuring.seed).permutation(self.count)  # data is often sorted by class
        self.x, self.y, self.weight = _rows(arrays, order)

    def check(self) -> Evaluation:
        """Evaluates once, and turns every failure into an error about validation_data."""
        if not getattr(self.judge, "compiled", False):
            raise InvalidArgumentError(
                f"model {self.judge.name!r} is not compiled, so it has no loss to measure; call model.compile(loss=..., "
                "metrics=...) first"
            )
        try:
            found = self.evaluate()
        except InvalidArgumentError:
            raise
        except Exception as error:
            if callable(self.measuring.monitor):
                raise InvalidArgumentError(f"monitor {self.measure.text} failed: {error!r}") from error
            raise InvalidArgumentError(
                f"the model cannot be evaluated on validation_data (x: {_shapes(self.x)}, y: {_shapes(self.y)}; model "
                f"input {self.model.input_shape}, output {self.model.output_shape}): {error}"
            ) from error
        if not np.isfinite([found.metric, found.loss]).all():
            if not all(np.isfinite(p).all() for p in tree.flatten(self._predicted())):
                raise NotFiniteError(
                    f"model {self.model.name!r} gives outputs that are not finite on validation_data; if training has "
                    "diverged, train it again with a smaller learning rate"
                )
            if self.as_it_is or np.isfinite(found.loss):
                raise InvalidArgumentError(
                    f"what pruning compares, {self.measure.text}, is {found.metric} on validation_data; check the "
                    "data, or use another monitor"
                )
            raise InvalidArgumentError(
                f"the loss on validation_data is {found.loss}; check that the labels (y: {_shapes(self.y)}, from "
                f"{_bounds(self.y)}) fit the model's output {self.model.output_shape}"
            )
        return found

    @cached_property
    def measure(self) -> Measure:
        """The quantity that is compared for this model.

        Raises:
            InvalidArgumentError: the model does not have what `monitor` asks for.
        """
        if callable(self.measuring.monitor):
            return resolve(self.measuring, self.judge, (), list)
        if self.tested and self.judge is not self.model:
            raise InvalidArgumentError(
                f"model {self.judge.name!r} has its own test_step, which cannot evaluate the copy that a search with "
                "refit_data works on; leave out refit_data, or set monitor= to a function of the model"
            )
        return resolve(self.measuring, self.judge, self.results, self._outputs)

    @property
    def tested(self) -> bool:
        """Whether the model has a custom `test_step`."""
        return is_own(self.judge, "test_step")

    @property
    def as_it_is(self) -> bool:
        """Whether a function or a custom `test_step` evaluates the whole model. Otherwise its outputs are judged."""
        return self.measure.function is not None or self.tested

    def evaluate(self) -> Evaluation:
        """Returns metric and loss of the model as it is now."""
        if self.as_it_is:
            if self.measure.function is not None:
                with self.state_put_back():
                    metric = self.measure.function(self.model)
                return Evaluation(metric, -metric)
            results = self._tested(slice(None))
            metric = float(self.measure.of(results))
            return Evaluation(metric, float(results.get("loss", -metric)))
        predicted = self._predicted()
        if self.masks:
            flat = zip(tree.flatten(predicted), self.masks, strict=True)
            predicted = tree.pack_sequence_as(predicted, [internals.with_mask(p, mask) for p, mask in flat])
        with self.metrics_put_back():
            metric, loss = self.judged(self.y, predicted, self.weight)
        return Evaluation(float(metric), float(loss))

    def _tested(self, rows: slice) -> dict[str, Any]:
        """Returns the results of `evaluate`; their mean over batches if `evaluate` would give the last batch alone."""
        arrays = [_rows(a, rows) for a in (self.x, self.y, self.weight)]
        count = count_samples(arrays[0])
        starts = range(0, count, _BATCH)
        with self.state_put_back():
            found = self._evaluated(arrays)
            if len(starts) > 1 and found.keys() != self.model.get_metrics_result().keys():
                parts = [self._evaluated([_rows(a, slice(i, i + _BATCH)) for a in arrays]) for i in starts]
                sizes = [min(_BATCH, count - i) for i in starts]
                found = {key: np.average([part[key] for part in parts], axis=0, weights=sizes) for key in found}
        return dict(_flat(found))

    def _evaluated(self, arrays: list) -> dict[str, Any]:
        x, y, weight = arrays
        return self.model.evaluate(x, y, _BATCH, sample_weight=weight, verbose=0, return_dict=True)

    def _predicted(self) -> Any:
        parts = [self.predict(_rows(self.x, slice(i, i + _BATCH))) for i in range(0, self.count, _BATCH)]
        return tree.map_structure(lambda *p: np.concatenate(p), *parts)

    def judged(self, y: Any, predicted: Any, weight: Any) -> tuple[Any, Any]:
        """Returns metric and loss of given outputs. The states of the metrics are changed."""
        results = self._computed(y, predicted, weight)
        return self.measure.of(results), results["loss"]

    def _computed(self, y: Any, predicted: Any, weight: Any) -> dict[str, Any]:
        """Returns the loss and all metrics of given outputs, by the names that `evaluate` of Keras gives them."""
        self.judge.reset_metrics()
        # Outside the scope, `losses` holds what activity regularizers left there while the model was traced.
        with internals.stateless([(w, w.value) for w in self.judge.weights]) as scope:
            loss = internals.loss_of(self.judge, None, y, predicted, weight)
            loss = loss - sum(keras.ops.sum(extra) for extra in self.judge.losses)
        for variable in self.judge.metrics_variables:  # the losses of the outputs
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)
        results = self.judge.compute_metrics(None, y, predicted, weight)
        return {**dict(_flat(results)), "loss": loss}

    @cached_property
    def masks(self) -> list[Any]:
        """The mask of each output on all samples, or None for an output without one; empty if no output has one."""
        if all(internals.mask_of(t) is None for t in self._run(slice(1))):
            return []
        parts = [[internals.mask_of(t) for t in self._run(slice(i, i + _BATCH))] for i in range(0, self.count, _BATCH)]
        return [None if each[0] is None else np.concatenate(each) for each in zip(*parts, strict=True)]

    def _run(self, rows: slice) -> list[Any]:
        return tree.flatten(self.model(_rows(self.x, rows), training=False))

    @cached_property
    def results(self) -> list[str]:
        """Names of the results of an evaluation, without metrics that only a custom `train_step` updates."""
        rows = slice(_BATCH)
        if self.tested:
            return list(self._tested(rows))
        own = [m for m in self.judge.metrics if m.name not in ("loss", "compile_metrics")]
        predicted = self.predict(_rows(self.x, rows))
        with self.metrics_put_back():
            self.judge.reset_metrics()
            before = [[v.numpy() for v in m.variables] for m in own]
            found = self._computed(_rows(self.y, rows), predicted, _rows(self.weight, rows))
            after = [[v.numpy() for v in m.variables] for m in own]
        same = [all(map(np.array_equal, old, new)) for old, new in zip(before, after, strict=True)]
        idle = {m.name for m, unchanged in zip(own, same, strict=True) if unchanged}
        return [name for name in found if name not in idle]

    def _outputs(self) -> list[Output]:
        """Returns the outputs of the model, and whether the loss on the samples depends on them."""
        named = _output_names(internals.functional_of(self.judge))
        if len(named) == 1 or self.tested:
            return [Output(names) for names in named]
        trained = np.zeros(len(named), bool)
        for start in range(0, self.count, _FEW):
            if not trained.all():
                trained |= self._trained(slice(start, start + _FEW))
        return [Output(names, bool(t or not trained.any())) for names, t in zip(named, trained, strict=True)]

    def _trained(self, rows: slice) -> list[bool]:
        """Returns for each output whether the loss has a gradient there.

        The outputs may be right already, which makes the gradient zero. So outputs of other samples are tried, too.
        """
        own = tree.map_structure(np.asarray, self.predict(_rows(self.x, rows)))
        y, weight = _rows(self.y, rows), _rows(self.weight, rows)
        found = []
        for outputs in (own, tree.map_structure(lambda p: np.roll(p, 1, axis=0), own)):
            flat = [tf.convert_to_tensor(p) for p in tree.flatten(outputs)]
            with self.metrics_put_back(), tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([p for p in flat if p.dtype.is_floating])
                loss = self._computed(y, tree.pack_sequence_as(outputs, flat), weight)["loss"]
            gradients = tape.gradient(loss, flat)
            found.append([g is not None and bool(np.any(tf.convert_to_tensor(g) != 0)) for g in gradients])
        return [any(pair) for pair in zip(*found, strict=True)]

    @cached_property
    def chunk(self) -> int:
        """Number of samples in a chunk. The parts for attempts are made of chunks."""
        most = _PART_BYTES // (_LEAST_CHUNKS * self._bytes_per_sample)
        return int(max(1, min(_CHUNK, self.count // 16, most)))

    @cached_property
    def parts(self) -> list[slice]:
        """Slices of the chunks, about equal, of at most 256 samples each. Samples that do not fill a chunk are left
        out.

        Empty if metric and loss on all samples are not the means of those on the chunks. Examples are AUC, IoU, sample
        weights and masks. The two are compared to find this out. They are also compared on the outputs of other
        samples, because a perfect AUC is a mean by chance.
        """
        if self.as_it_is:
            return []
        if self.masks or any(np.ptp(w) > 0 for w in tree.flatten(self.weight) if w is not None):
            return []
        chunks = self.count // self.chunk
        fitting = max(_LEAST_CHUNKS, _PART_BYTES // (self.chunk * self._bytes_per_sample))
        size = max(1, min(_BATCH // self.chunk, max(_LEAST_CHUNKS, chunks // 8), fitting))
        ends = np.linspace(0, chunks, math.ceil(chunks / size) + 1).round().astype(int).tolist()
        parts = [slice(*ends) for ends in itertools.pairwise(ends)]
        rows = self.samples(slice(0, chunks))
        own = self._predicted()
        for predicted in (own, tree.map_structure(lambda p: np.roll(p, 1, axis=0), own)):
            with self.metrics_put_back():
                whole = [float(v) for v in self.judged(*(_rows(a, rows) for a in (self.y, predicted, self.weight)))]
            found = [self.judge_chunks([_rows(predicted, self.samples(part))], part)[0] for part in parts]
            if not np.allclose(np.concatenate(found).mean(axis=0), whole, rtol=1e-3, atol=1e-5):
                return []
        return parts

    @cached_property
    def _bytes_per_sample(self) -> int:
        """The size of what comparing attempts keeps of a sample, about: the tensors between layers with a kernel."""
        traced = trace(self.model)
        sizes, of_calls = tensor_sizes(traced, self.x), [getattr(c.operation, "weights", ()) for c in traced.calls]
        starts = [number for number, weights in enumerate(of_calls) if any(len(w.shape) > 1 for w in weights)]
        edges = itertools.pairwise([*sorted({0, *starts}), len(of_calls)])
        kept = {i for edge in edges for i in segment(traced, *edge).outputs}
        return 4 * max(sum(sizes[i] for i in kept), *sizes)

    def samples(self, part: slice) -> slice:
        """Returns the slice of the samples for a slice of the chunks."""
        return slice(part.start * self.chunk, part.stop * self.chunk)

    def judge_chunks(self, predictions: list[Any], part: slice) -> np.ndarray:
        """Returns metric and loss of several outputs on each chunk of a part: float array (outputs, chunks, 2)."""
        chunks = part.stop - part.start
        rows = self.samples(part)

        def chunked(array):
            return None if array is None else np.reshape(array, (chunks, self.chunk, *np.shape(array)[1:]))

        y, weight = (tree.map_structure(chunked, _rows(a, rows)) for a in (self.y, self.weight))
        with self.metrics_put_back():
            judge = self._judge_one_by_one if self.judge.run_eagerly else self._judge_all
            return np.stack([judge(y, tree.map_structure(chunked, p), weight) for p in predictions])

    def _judge_one_by_one(self, y: Any, predicted: Any, weight: Any) -> np.ndarray:
        chunks = len(tree.flatten(predicted)[0])
        found = [self.judged(*(_rows(a, i) for a in (y, predicted, weight))) for i in range(chunks)]
        return np.array([[float(metric), float(loss)] for metric, loss in found])

    @cached_property
    def _judge_all(self) -> Callable:
        """`judged` for each chunk, compiled. It holds the weights that a loss may read, so it is dropped with them."""
        _ = self.measure  # computed here, because it may need an evaluation, which is impossible while tracing

        @tf.function(autograph=False, reduce_retracing=True)
        def judge(y, predicted, weight):
            def one(batch):
                return tf.stack([tf.cast(v, "float32") for v in self.judged(*batch)])

            given = (y, predicted) if weight is None else (y, predicted, weight)
            return tf.map_fn(
                lambda batch: one((*batch, None)[:3]), given, parallel_iterations=1, fn_output_signature="float32"
            )

        return lambda *arrays: judge(*arrays).numpy()

    def forget(self) -> None:
        """Drops what was compiled with the current weights of the model."""
        for name in ("_judge_all", "_statistics"):
            vars(self).pop(name, None)

    def predict(self, x: Any) -> Any:
        """Returns the outputs for one batch. With several replicas, `predict_on_batch` would return a set for each."""
        strategy = getattr(self.model, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            return tree.map_structure(np.asarray, self.model(x, training=False))
        return self.model.predict_on_batch(x)

    def metrics_put_back(self) -> AbstractContextManager[None]:
        """Restores the running metrics of the current `fit`."""

        def keep(journal: Journal) -> None:
            journal.keep(self.judge.metrics_variables)
            journal.note(self.judge.reset_metrics)  # for metrics that are built inside the block

        return temporarily(keep)

    def state_put_back(self) -> AbstractContextManager[None]:
        """Restores everything that custom code may change while it evaluates: weights, seeds, running metrics."""

        def keep(journal: Journal) -> None:
            journal.keep({id(v): v for v in (*self.model.variables, *self.model.metrics_variables)}.values())
            journal.note(self.model.reset_metrics)

        return temporarily(keep)

    @cached_property
    def _statistics(self) -> BatchStatistics:
        return BatchStatistics(self.model, compiling=not self.judge.run_eagerly)

    def reestimated(self) -> AbstractContextManager[None]:
        """Inside the block, batch normalization uses the mean statistics of batches of the samples.

        Afterwards its own statistics are restored.
        """
        return reestimated(self._statistics, _rows(self.x, slice(REESTIMATION_SAMPLES)), _REESTIMATION_BATCH)


def _output_names(functional: keras.Model | None) -> list[set[str]]:
    """Returns, for each output of a model, the possible beginnings of the names of its results."""
    if functional is None:
        return [set()]
    keys = functional.output if isinstance(functional.output, Mapping) else {}
    named = zip(functional.outputs, functional.output_names, strict=True)
    return [{name} | {key for key, given in keys.items() if given is tensor} for tensor, name in named]


def _rows(arrays: Any, rows: Any) -> Any:
    return tree.map_structure(lambda a: None if a is None else a[rows], arrays)


def _flat(results: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in results.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shapes(arrays: Any) -> Any:
    return tree.map_structure(np.shape, arrays)


def _bounds(arrays: Any) -> str:
    flat = [np.asarray(a) for a in tree.flatten(arrays)]
    return ", ".join(f"{a.min()} to {a.max()}" for a in flat)

"""Measures a model on validation samples between two training steps, and leaves no trace in it."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp import internals
from keras_pcp.changes import Journal, temporarily
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.recalibration import recalibrated
from keras_pcp.samples import count_samples, take_samples
from keras_pcp.strategies.state import Evaluation
from keras_pcp.trace import tensor_sizes, trace

_BATCH = 256
_CHUNK, _LEAST_CHUNKS = 16, 8
_PART_BYTES = 2**27
RECALIBRATION_SAMPLES, _RECALIBRATION_BATCH = 512, 64
_HIGHER_IS_BETTER = {
    "acc", "accuracy", "auc", "precision", "recall", "sensitivity", "specificity", "f1", "f1score", "fbeta", "iou", "io",
    "miou", "r2", "dice",
}  # fmt: skip


class Evaluator:
    """Evaluates a compiled model on fixed samples. Metric states and weights are put back afterwards.

    The metric is the mean of the compiled metrics for which higher is better (accuracy, AUC, IoU ...), and minus the
    loss where there is none or the signal is "loss". They are told by their names, and those that only a `train_step` of
    the model's own brings up to date are left out. Positions that the model masks do not count, as in Keras. The loss is
    without regularization terms. Both are those that `judge` was compiled with: the model itself, or the one that it is a
    copy of.
    """

    def __init__(
        self,
        model: keras.Model,
        validation_data: Any,
        samples: int | None,
        seed: int,
        judge: keras.Model | None = None,
        signal: str = "metric",
    ):
        self.model, self.judge, self.signal = model, judge or model, signal
        self.prefixes = _output_names(internals.functional_of(model))
        arrays = take_samples(validation_data, samples, seed, "validation_data")
        self.count = count_samples(arrays[:2], "validation_data")
        order = np.random.default_rng(seed).permutation(self.count)  # data is often sorted by class
        self.x, self.y, self.weight = _rows(arrays, order)

    def check(self) -> Evaluation:
        """Evaluates once, and turns whatever goes wrong into an error about validation_data."""
        if not getattr(self.judge, "compiled", False):
            raise InvalidArgumentError(
                f"model {self.judge.name!r} is not compiled, so it has no loss to measure; call model.compile(loss=..., "
                "metrics=...) first"
            )
        try:
            found = self.evaluate()
        except Exception as error:
            raise InvalidArgumentError(
                f"the model cannot be evaluated on validation_data (x: {_shapes(self.x)}, y: {_shapes(self.y)}; model "
                f"input {self.model.input_shape}, output {self.model.output_shape}): {error}"
            ) from error
        if not np.isfinite(found.loss):
            if not all(np.isfinite(p).all() for p in tree.flatten(self._predicted())):
                raise InvalidArgumentError(
                    f"model {self.model.name!r} gives outputs that are not finite on validation_data; if its training "
                    "has diverged, train it again with a smaller learning rate"
                )
            raise InvalidArgumentError(
                f"the loss on validation_data is {found.loss}; check that the labels (y: {_shapes(self.y)}, from "
                f"{_bounds(self.y)}) fit the model's output {self.model.output_shape}"
            )
        return found

    def evaluate(self) -> Evaluation:
        """Returns metric and loss of the model as it is now."""
        predicted = self._predicted()
        if self.masks:
            flat = zip(tree.flatten(predicted), self.masks, strict=True)
            predicted = tree.pack_sequence_as(predicted, [internals.with_mask(p, mask) for p, mask in flat])
        with self.metrics_put_back():
            metric, loss = self.judged(self.y, predicted, self.weight)
        return Evaluation(float(metric), float(loss))

    def _predicted(self) -> Any:
        parts = [self.predict(_rows(self.x, slice(i, i + _BATCH))) for i in range(0, self.count, _BATCH)]
        return tree.map_structure(lambda *p: np.concatenate(p), *parts)

    def judged(self, y: Any, predicted: Any, weight: Any) -> tuple[Any, Any]:
        """Returns metric and loss of given outputs. Leaves them in the states of the metrics."""
        # Outside the scope `losses` holds what activity regularizers left behind while the model was traced.
        with internals.stateless([(w, w.value) for w in self.judge.weights]):
            loss = internals.loss_of(self.judge, None, y, predicted, weight)
            loss = loss - sum(keras.ops.sum(extra) for extra in self.judge.losses)
        idle = self.idle
        self.judge.reset_metrics()
        results = self.judge.compute_metrics(None, y, predicted, weight)
        found = {k: v for k, v in results.items() if self.signal == "metric" and k not in idle}
        metrics = [v for k, v in _flat(found) if _higher_is_better(k, self.prefixes)]
        return (sum(keras.ops.mean(v) for v in metrics) / len(metrics) if metrics else -loss), loss

    @cached_property
    def masks(self) -> list[Any]:
        """The mask of each output on all samples, or None where it has none; empty if no output has one."""
        if all(internals.mask_of(t) is None for t in self._run(slice(1))):
            return []
        parts = [[internals.mask_of(t) for t in self._run(slice(i, i + _BATCH))] for i in range(0, self.count, _BATCH)]
        return [None if each[0] is None else np.concatenate(each) for each in zip(*parts, strict=True)]

    def _run(self, rows: slice) -> list[Any]:
        return tree.flatten(self.model(_rows(self.x, rows), training=False))

    @cached_property
    def idle(self) -> set[str]:
        """Names of metrics that `compute_metrics` leaves as they are: own ones of a model with an own `train_step`."""
        own = [m for m in self.judge.metrics if m.name not in ("loss", "compile_metrics")]
        if not own:
            return set()
        rows = slice(_BATCH)
        predicted = self.predict(_rows(self.x, rows))
        with self.metrics_put_back():
            self.judge.reset_metrics()
            before = [[v.numpy() for v in m.variables] for m in own]
            self.judge.compute_metrics(None, _rows(self.y, rows), predicted, _rows(self.weight, rows))
            after = [[v.numpy() for v in m.variables] for m in own]
        same = [all(map(np.array_equal, old, new)) for old, new in zip(before, after, strict=True)]
        return {m.name for m, unchanged in zip(own, same, strict=True) if unchanged}

    @cached_property
    def chunk(self) -> int:
        """Number of samples in a chunk; parts for attempts are made of chunks."""
        most = _PART_BYTES // (_LEAST_CHUNKS * self._bytes_per_sample())
        return int(max(1, min(_CHUNK, self.count // 16, most)))

    @cached_property
    def parts(self) -> list[slice]:
        """Slices of the chunks, about equal and of at most 256 samples each; a rest that makes no chunk is left out.

        Empty if metric and loss on all samples are not the means of those on the chunks: AUC and IoU, for example, and
        whatever is weighted by sample or masked. That is found by comparing them, also on outputs that belong to other
        samples: a perfect AUC is a mean by chance.
        """
        if self.masks or any(np.ptp(w) > 0 for w in tree.flatten(self.weight) if w is not None):
            return []
        chunks = self.count // self.chunk
        fitting = max(_LEAST_CHUNKS, _PART_BYTES // (self.chunk * self._bytes_per_sample()))
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

    def _bytes_per_sample(self) -> int:
        """Returns the size of all tensors of the model for one sample."""
        return 4 * sum(tensor_sizes(trace(self.model), self.x))

    def samples(self, part: slice) -> slice:
        """Returns the slice of the samples for a slice of the chunks."""
        return slice(part.start * self.chunk, part.stop * self.chunk)

    def judge_chunks(self, predictions: list[Any], part: slice) -> np.ndarray:
        """Returns metric and loss, on each chunk of a part, of several outputs: float array (outputs, chunks, 2)."""
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
        """`judged` for each chunk, compiled. Holds the weights that a loss may read, so it is dropped with them."""

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
        """Drops what was compiled with the model's present weights."""
        self.__dict__.pop("_judge_all", None)

    def predict(self, x: Any) -> Any:
        """Returns the outputs for one batch. Under several replicas `predict_on_batch` would give one set for each."""
        strategy = getattr(self.model, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            return tree.map_structure(np.asarray, self.model(x, training=False))
        return self.model.predict_on_batch(x)

    def metrics_put_back(self) -> AbstractContextManager[None]:
        """Restores the running metrics of the training in progress."""

        def keep(journal: Journal) -> None:
            journal.keep(self.judge.metrics_variables)
            journal.note(self.judge.reset_metrics)  # for those that are built inside the block

        return temporarily(keep)

    def recalibrated(self) -> AbstractContextManager[None]:
        """Inside the block, batch normalization uses mean statistics of batches of the samples; then its own again."""
        return recalibrated(self.model, _rows(self.x, slice(RECALIBRATION_SAMPLES)), _RECALIBRATION_BATCH)


def _output_names(functional: keras.Model | None) -> list[str]:
    """Returns what the results of a model's outputs may begin with, the longest first."""
    if functional is None:
        return []
    names = set(functional.output_names) if len(functional.outputs) > 1 else set()
    names |= set(functional.output) if isinstance(functional.output, Mapping) else set()
    return sorted((f"{name}_".lower() for name in names), key=len, reverse=True)


def _higher_is_better(key: str, prefixes: list[str]) -> bool:
    """Tells by the name of a result, without the name of the output that it belongs to."""
    name = next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)
    return bool(_HIGHER_IS_BETTER & set(re.split(r"[^a-z0-9]+", name)))


def _rows(arrays: Any, rows: Any) -> Any:
    return tree.map_structure(lambda a: None if a is None else a[rows], arrays)


def _flat(results: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in results.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}".lower(), value


def _shapes(arrays: Any) -> Any:
    return tree.map_structure(np.shape, arrays)


def _bounds(arrays: Any) -> str:
    flat = [np.asarray(a) for a in tree.flatten(arrays)]
    return ", ".join(f"{a.min()} to {a.max()}" for a in flat)

"""Measures a model on validation samples between two training steps, and leaves no trace in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.samples import count_samples, take_samples
from keras_pcp.strategies.progressive import Evaluation
from keras_pcp.trace import trace

_BATCH = 256
_RECALIBRATION_SAMPLES = 512
_HIGHER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "fbeta", "iou", "r2", "dice", "true_positives")


class Evaluator:
    """Evaluates a compiled model on fixed samples. Metric states and weights are put back afterwards.

    The metric is the mean of the compiled metrics for which higher is better (accuracy, AUC, IoU ...), and minus the
    loss where there is none. The loss is without regularization terms.
    """

    def __init__(self, model: keras.Model, validation_data: Any, samples: int | None, seed: int):
        self.model = model
        self.x, self.y, self.weight = take_samples(validation_data, samples, seed, "validation_data")
        self.count = count_samples((self.x, self.y), "validation_data")

    def check(self) -> Evaluation:
        """Evaluates once, and turns whatever goes wrong into an error about validation_data."""
        try:
            found = self.evaluate()
        except Exception as error:
            raise InvalidArgumentError(
                f"the model cannot be evaluated on validation_data (x: {_shapes(self.x)}, y: {_shapes(self.y)}; model "
                f"input {self.model.input_shape}, output {self.model.output_shape}): {error}"
            ) from error
        if not np.isfinite(found.loss):
            raise InvalidArgumentError(
                f"the loss on validation_data is {found.loss}; check that the labels (y: {_shapes(self.y)}, from "
                f"{_bounds(self.y)}) fit the model's output {self.model.output_shape}"
            )
        return found

    def evaluate(self) -> Evaluation:
        """Returns metric and loss of the model as it is now."""
        parts = [
            self.predict(tree.map_structure(lambda a, i=i: a[i : i + _BATCH], self.x))
            for i in range(0, self.count, _BATCH)
        ]
        predicted = tree.map_structure(lambda *p: np.concatenate(p), *parts)
        with self.metrics_put_back():
            # Outside the scope `losses` holds what activity regularizers left behind while the model was traced.
            with keras.StatelessScope(state_mapping=[(w, w.value) for w in self.model.weights]):
                loss = self.model.compute_loss(
                    x=None, y=self.y, y_pred=predicted, sample_weight=self.weight, training=False
                )
                loss = float(loss) - float(sum(np.sum(extra) for extra in self.model.losses))
            self.model.reset_metrics()
            results = self.model.compute_metrics(None, self.y, predicted, self.weight)
        metrics = [float(np.mean(v)) for k, v in _flat(results) if any(word in k for word in _HIGHER_IS_BETTER)]
        return Evaluation(float(np.mean(metrics)) if metrics else -loss, loss)

    def predict(self, x: Any) -> Any:
        """Returns the outputs for one batch. Under several replicas `predict_on_batch` would give one set for each."""
        strategy = getattr(self.model, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            return tree.map_structure(np.asarray, self.model(x, training=False))
        return self.model.predict_on_batch(x)

    @contextmanager
    def metrics_put_back(self) -> Iterator[None]:
        """Restores the running metrics of the training in progress."""
        saved = [(v, v.numpy()) for v in self.model.metrics_variables]
        try:
            yield
        finally:
            self.model.reset_metrics()
            for variable, value in saved:
                variable.assign(value)

    @contextmanager
    def recalibrated(self) -> Iterator[None]:
        """Inside the block, batch normalization uses statistics of the samples; afterwards its own again."""
        layers = _normalizations(self.model)
        saved = [(v, v.numpy()) for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
        momenta = [(layer, layer.momentum) for layer in layers]
        try:
            if layers:
                for layer in layers:
                    layer.momentum = 0.0
                self.model(tree.map_structure(lambda a: a[:_RECALIBRATION_SAMPLES], self.x), training=True)
            yield
        finally:
            for layer, momentum in momenta:
                layer.momentum = momentum
            for variable, value in saved:
                variable.assign(value)


def _normalizations(model: keras.Model) -> Sequence[keras.layers.BatchNormalization]:
    return [op for op in trace(model).operations if isinstance(op, keras.layers.BatchNormalization)]


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

"""Re-estimates the statistics of batch normalization, which lag behind the weights in a short training run.

With Keras's momentum of 0.99, a third of the moving statistics after 100 steps still comes from before the training. Means
over batches of the current model do not have this problem. Wu & Johnson (Rethinking "Batch" in BatchNorm, arXiv 2105.07576)
call them PreciseBN. EagleEye (Li et al., ECCV 2020, arXiv 2007.02491) compares pruned networks only after this step.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import checks, internals
from keras_pcp.support.changes import Journal, all_or_nothing, guarded, temporarily
from keras_pcp.support.data import check_inputs, count_samples, take_samples, with_any_labels
from keras_pcp.support.models import check_model

L = keras.layers


def reestimate_batch_norm(
    model: keras.Model, data: Any, *, samples: int = 2048, batch_size: int = 128, seed: int = 0
) -> list[str]:
    """Replaces the moving statistics of batch normalization by their means over batches of data.

    Call it after a short fit, or on the result of `prune_model` and `refit`. The model runs in training mode, but only
    these statistics change. Layers with `trainable=False` keep theirs.

    Args:
        model: any built model.
        data: (x, y), only an array of inputs, or a dataset of (x, y): training samples as the model sees them in training.
            Labels are not used.
        samples: maximum number of samples; a last batch that is not full is left out.
        batch_size: samples in a batch.
        seed: for the draw of samples.

    Returns:
        The names of the layers whose statistics were replaced.

    Raises:
        InvalidArgumentError: there are no samples, they do not fit the model, they or their statistics are NaN or
            infinite, or a number is below 1. Then the model is not changed.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(name="bn")])
        >>> keras_pcp.reestimate_batch_norm(model, np.array([[1.0], [3.0], [5.0], [7.0]]), batch_size=2)
        ['bn']
        >>> layer = model.get_layer("bn")
        >>> float(layer.moving_mean[0]), float(layer.moving_variance[0])  # of the batches: means 2, 6, variances 1
        (4.0, 1.0)
    """
    if not check_model("model", model).built:
        raise InvalidArgumentError(f"model {model.name!r} is not built, so it has no statistics; train it first")
    samples, batch_size = checks.count("samples", samples), checks.count("batch_size", batch_size)
    x = take_samples(with_any_labels(data), samples, checks.count("seed", seed, 0))[0]
    check_inputs(model, x)
    layers = [layer for layer in batch_normalizations(model) if layer.trainable]
    statistics = guarded(lambda: BatchStatistics(model, layers).means(x, batch_size) if layers else [])
    all_or_nothing(lambda journal: journal.assign(statistics))
    return [layer.name for layer in layers]


def reestimated(statistics: "BatchStatistics", x: Any, batch_size: int) -> AbstractContextManager[None]:
    """Makes batch normalization use mean statistics of batches of samples inside a block, then its own again.

    Whatever else running the model changes in the block, such as seeds, is put back, too.
    """
    if not statistics.layers:
        return nullcontext()
    values = guarded(lambda: statistics.means(x, batch_size))

    def change(journal: Journal) -> None:
        journal.keep(state_of(statistics.model))
        journal.assign(values)

    return temporarily(change)


class BatchStatistics:
    """The statistics of the batch normalization layers of a model as means over batches. The model is not changed.

    The model runs in training mode. What this would change is handed from batch to batch. The statistics of a layer that is
    called several times are means over all its calls.

    Args:
        model: a built model.
        layers: batch normalization layers of it; None: all.
        compiling: whether to compile a run on a batch. It is traced once as long as the model has the same variables.
    """

    def __init__(self, model: keras.Model, layers: Sequence[keras.Layer] | None = None, compiling: bool = False):
        self.model, every = model, batch_normalizations(model)
        self.every, self.layers = every, every if layers is None else list(layers)
        self.averaged = [v for layer in every for v in (layer.moving_mean, layer.moving_variance)]
        self.state = state_of(model)
        # A partial has no code that others share; by its code, TensorFlow would count all of them as one function.
        run = partial(self._run)
        self.run = tf.function(run, autograph=False, reduce_retracing=True) if compiling else run

    def means(self, x: Any, batch_size: int) -> list[tuple[keras.Variable, np.ndarray]]:
        """Returns the statistics and their means over batches of samples, without a last batch that is not full.

        Raises:
            InvalidArgumentError: they are NaN or infinite.
        """
        state, sums = [tf.convert_to_tensor(v.value) for v in self.state], [np.zeros(v.shape) for v in self.averaged]
        count = max(1, count_samples(x) // batch_size)
        for number in range(count):
            rows = slice(number * batch_size, (number + 1) * batch_size)
            batch = tree.map_structure(lambda a, rows=rows: keras.ops.convert_to_tensor(a[rows]), x)
            state, found = self.run(batch, state)
            sums = [total + np.asarray(value, float) for total, value in zip(sums, found, strict=True)]
        last = {id(v): value for v, value in zip(self.state, state, strict=True)}
        means = {id(v): total / count for v, total in zip(self.averaged, sums, strict=True)}
        wanted = [v for layer in self.layers for v in layer.non_trainable_variables]
        values = [(v, np.asarray(means.get(id(v), last[id(v)]))) for v in wanted]
        for variable, value in values:
            if not checks.is_finite(np.asarray(value, "float32")):
                raise InvalidArgumentError(
                    f"the estimated statistics {variable.path!r} have NaN or infinite values; check the scale of the data "
                    "and the weights of the layers before"
                )
        return values

    def _run(self, x: Any, state: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the state after a run on one batch, and the mean statistics of the batch."""

        def take_each_batch_alone(journal: Journal) -> None:
            for layer in self.every:
                journal.set(layer, "momentum", 0.0)

        assigned: dict[int, list[Any]] = {}
        with (
            temporarily(take_each_batch_alone),
            internals.stateless(list(zip(self.state, state, strict=True))) as scope,
        ):
            add = scope.add_update

            def add_update(update: tuple[keras.Variable, Any]) -> None:
                assigned.setdefault(id(update[0]), []).append(update[1])
                add(update)

            scope.add_update = add_update
            self.model(x, training=True)
            now = [scope.get_current_value(v) for v in self.state]
        state = [old if new is None else new for old, new in zip(state, now, strict=True)]
        last = {id(v): value for v, value in zip(self.state, state, strict=True)}
        each = [assigned.get(id(v), [last[id(v)]]) for v in self.averaged]
        return state, [sum(values[1:], values[0]) / len(values) for values in each]


def batch_normalizations(model: keras.Model) -> list[keras.Layer]:
    """Returns the batch normalization layers of a model, including those of nested models."""
    return [layer for layer in internals.layers_of(model) if isinstance(layer, L.BatchNormalization)]


def state_of(model: keras.Model) -> list[keras.Variable]:
    """Returns all variables that a run in training mode may change, including seeds and those of custom layers."""
    return list({id(v): v for v in (*model.weights, *model.non_trainable_variables)}.values())

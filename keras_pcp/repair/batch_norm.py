"""Re-estimates the statistics of batch normalization, which lag behind the weights in a short training run.

With Keras's momentum of 0.99, a third of the moving statistics after 100 steps still comes from before the training. Means
over batches of the current model do not have this problem. Wu & Johnson (Rethinking "Batch" in BatchNorm, arXiv 2105.07576)
call them PreciseBN. EagleEye (Li et al., ECCV 2020, arXiv 2007.02491) compares pruned networks only after this step.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
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
    statistics = guarded(lambda: BatchStatistics(model, layers).means(x, batch_size))
    all_or_nothing(lambda journal: journal.assign(statistics))
    return [layer.name for layer in layers]


def reestimated(statistics: "BatchStatistics", x: Any, batch_size: int) -> AbstractContextManager[None]:
    """Makes batch normalization use mean statistics of batches of samples inside a block, then its own again."""
    values = guarded(lambda: statistics.means(x, batch_size))

    def change(journal: Journal) -> None:
        journal.keep(variable for variable, _ in values)
        journal.assign(values)

    return temporarily(change)


class BatchStatistics:
    """The statistics of the batch normalization layers of a model as means over batches. The model is not changed.

    The model runs in training mode. What this would change, such as the statistics and seeds, is handed from batch to batch.

    Args:
        model: a built model. As long as its variables are the same, it is traced once.
        layers: batch normalization layers of it; None: all.
    """

    def __init__(self, model: keras.Model, layers: Sequence[keras.Layer] | None = None):
        self.model, every = model, batch_normalizations(model)
        self.layers, self.every = every if layers is None else list(layers), every
        trained = {id(v) for v in model.trainable_variables}
        self.state = [v for v in state_of(model) if id(v) not in trained]
        # A partial has no code that others share; by its code, TensorFlow would count all of them as one function.
        step = partial(self._after_batch)
        self.step = step if model.run_eagerly else tf.function(step, autograph=False)

    def means(self, x: Any, batch_size: int) -> list[tuple[keras.Variable, np.ndarray]]:
        """Returns the statistics and their means over batches of samples, without a last batch that is not full.

        Raises:
            InvalidArgumentError: they are NaN or infinite.
        """
        if not self.layers:
            return []
        x, count = tree.map_structure(keras.ops.convert_to_tensor, x), count_samples(x)
        state = [keras.ops.convert_to_tensor(v.value) for v in self.state]
        for number in range(max(1, count // batch_size)):
            rows = slice(number * batch_size, (number + 1) * batch_size)
            batch = tree.map_structure(lambda a, rows=rows: a[rows], x)
            state = self.step(batch, keras.ops.convert_to_tensor(number / (number + 1), "float32"), state)
        place = {id(v): i for i, v in enumerate(self.state)}
        wanted = [v for layer in self.layers for v in layer.non_trainable_variables]
        found = [(v, np.asarray(state[place[id(v)]])) for v in wanted]
        for variable, value in found:
            if not checks.is_finite(np.asarray(value, "float32")):
                raise InvalidArgumentError(
                    f"the estimated statistics {variable.path!r} have NaN or infinite values; check the scale of the data "
                    "and the weights of the layers before"
                )
        return found

    def _after_batch(self, x: Any, momentum: Any, state: Sequence[Any]) -> list[Any]:
        """Returns the state after a run in training mode on one batch."""

        def take_momentum(journal: Journal) -> None:
            for layer in self.every:
                journal.set(layer, "momentum", momentum)

        with temporarily(take_momentum), internals.stateless(list(zip(self.state, state, strict=True))) as scope:
            self.model(x, training=True)
            now = [scope.get_current_value(v) for v in self.state]
        return [old if new is None else keras.ops.cast(new, old.dtype) for old, new in zip(state, now, strict=True)]


def batch_normalizations(model: keras.Model) -> list[keras.Layer]:
    """Returns the batch normalization layers of a model, including those of nested models."""
    return [layer for layer in internals.layers_of(model) if isinstance(layer, L.BatchNormalization)]


def state_of(model: keras.Model) -> list[keras.Variable]:
    """Returns all variables that a run in training mode may change, including seeds and those of custom layers."""
    return list({id(v): v for v in (*model.weights, *model.non_trainable_variables)}.values())

"""Re-estimates the statistics of batch normalization, which lag behind the weights in a short training run.

With Keras's momentum of 0.99, a third of the moving statistics after 100 steps still comes from before the training. Means
over batches of the current model do not have this problem. Wu & Johnson (Rethinking "Batch" in BatchNorm, arXiv 2105.07576)
call them PreciseBN. EagleEye (Li et al., ECCV 2020, arXiv 2007.02491) compares pruned networks only after this step.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np
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
    statistics = guarded(lambda: _mean_statistics(model, layers, x, batch_size))
    all_or_nothing(lambda journal: journal.assign(statistics))
    return [layer.name for layer in layers]


def reestimated(model: keras.Model, x: Any, batch_size: int) -> AbstractContextManager[None]:
    """Makes batch normalization use mean statistics of batches of samples inside a block, then its own again."""
    layers = batch_normalizations(model)
    if not layers:
        return nullcontext()
    statistics = guarded(lambda: _mean_statistics(model, layers, x, batch_size))

    def change(journal: Journal) -> None:
        journal.keep(state_of(model))
        journal.assign(statistics)

    return temporarily(change)


def _mean_statistics(
    model: keras.Model, layers: list[keras.Layer], x: Any, batch_size: int
) -> list[tuple[keras.Variable, np.ndarray]]:
    """Returns the statistics of some layers and their means over batches; the model is as before."""
    with temporarily(lambda journal: journal.keep(state_of(model))):
        estimate_statistics(model, x, batch_size)
        found = [(v, v.numpy()) for layer in layers for v in layer.non_trainable_variables]
    for variable, value in found:
        if not checks.is_finite(np.asarray(value, "float32")):
            raise InvalidArgumentError(
                f"the estimated statistics {variable.path!r} have NaN or infinite values; check the scale of the data "
                "and the weights of the layers before"
            )
    return found


def batch_normalizations(model: keras.Model) -> list[keras.Layer]:
    """Returns the batch normalization layers of a model, including those of nested models."""
    return [layer for layer in internals.layers_of(model) if isinstance(layer, L.BatchNormalization)]


def state_of(model: keras.Model) -> list[keras.Variable]:
    """Returns all variables that a run in training mode may change, including seeds and those of custom layers."""
    return list({id(v): v for v in (*model.weights, *model.non_trainable_variables)}.values())


def estimate_statistics(model: keras.Model, x: Any, batch_size: int) -> None:
    """Runs the model in training mode on batches, so that the moving statistics become the means over the batches."""
    count, layers = count_samples(x), batch_normalizations(model)

    def keep_momenta(journal: Journal) -> None:
        for layer in layers:
            journal.remember(layer, "momentum")

    with temporarily(keep_momenta):
        for number in range(max(1, count // batch_size) if layers else 0):
            for layer in layers:
                layer.momentum = number / (number + 1)
            rows = slice(number * batch_size, (number + 1) * batch_size)
            model(tree.map_structure(lambda a, rows=rows: a[rows], x), training=True)

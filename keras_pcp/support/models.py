"""Checks of models: whether a value is a model, and whether its weights are finite."""

from typing import Any

import keras
import tensorflow as tf

from keras_pcp.errors import NotFiniteError
from keras_pcp.support.checks import instance


def check_finite(model: keras.Model) -> None:
    """Checks that all weights are finite.

    Raises:
        NotFiniteError: a weight is NaN or infinite.
    """
    for weight in model.weights:
        value = tf.convert_to_tensor(weight.value)
        if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
            raise NotFiniteError(
                f"weights of layer {weight.path.rpartition('/')[0]!r} ({weight.path}) are NaN or infinite"
            )


def check_model(name: str, value: Any) -> keras.Model:
    """Returns the value if it is a Keras model."""
    return instance(name, value, keras.Model, "a keras.Model", "load a file with keras.saving.load_model(path)")


def iterations_of(optimizer: keras.Optimizer | None) -> int:
    """Returns how many updates an optimizer has made; 0 if there is none.

    With a distribution strategy, Keras gives a variable with a copy on every device; if gradients accumulate, a tensor.
    """
    return 0 if optimizer is None else int(tf.convert_to_tensor(optimizer.iterations))

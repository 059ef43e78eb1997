"""Whether the weights of a model are numbers that pruning can go by."""

import keras
import tensorflow as tf

from keras_pcp.errors import NotFiniteError


def check_finite(model: keras.Model) -> None:
    """Looks for weights that are NaN or infinite.

    Raises:
        NotFiniteError: a layer has some.
    """
    for weight in model.weights:
        value = tf.convert_to_tensor(weight.value)
        if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
            raise NotFiniteError(
                f"weights of layer {weight.path.rpartition('/')[0]!r} ({weight.path}) are NaN or infinite"
            )

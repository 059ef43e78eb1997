"""Trainability of a network, measured by its input-output Jacobian."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import arrange_inputs
from keras_pcp.support import internals

DIRECTIONS = 16


def mean_singular_value(model: keras.Model, x: Any, *, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Returns the mean singular value of the Jacobian of a model's outputs with respect to its inputs.

    It is the mean over samples and over the singular values of each sample's Jacobian, at inference. Gradients that
    reach the first layers weakly or strongly show as a small or large value. If a sample has more outputs than
    `directions`, the Jacobian is projected on that many random orthonormal directions in the space of outputs, and the
    singular values are those of the projection. Then models with the same outputs can still be compared.

    Args:
        model: the model; all outputs count together. Its inputs must be floats.
        x: inputs, in the model's structure.
        directions: how many directions to use at most, at least 1. Each takes one backward pass.
        seed: for the draw of directions.

    References:
        Saxe, McClelland & Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural networks,
        ICLR 2014. As a measure for pruned networks: Lee et al., A Signal Propagation Perspective for Pruning Neural Networks
        at Initialization, ICLR 2020; Wang & Fu, Trainability Preserving Neural Pruning, ICLR 2023.

    Example:
        >>> import keras, numpy as np
        >>> i = keras.Input((3,))
        >>> model = keras.Model(i, keras.layers.Dense(2, use_bias=False)(i))
        >>> model.set_weights([np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])])
        >>> mean_singular_value(model, np.ones((4, 3)))
        2.0
    """
    traced = program_of(model).trace
    inputs = [tf.convert_to_tensor(a) for a in arrange_inputs(traced, x)]
    count, rng = len(inputs[0]), np.random.default_rng(seed)
    structured = tree.pack_sequence_as(model.input, inputs)
    with internals.stateless(), tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        outputs = [
            tf.reshape(tf.cast(o, "float32"), (count, -1)) for o in tree.flatten(model(structured, training=False))
        ]
        outputs = tf.concat(outputs, axis=1)
        size = outputs.shape[1]
        basis = np.eye(size) if size <= directions else np.linalg.qr(rng.normal(size=(size, directions)))[0].T
        along = [tf.reduce_sum(outputs * direction.astype("float32")) for direction in basis]
    rows = []
    for value in along:
        gradients = tape.gradient(value, inputs, unconnected_gradients="zero")
        rows.append(np.concatenate([np.reshape(np.asarray(g, "float64"), (count, -1)) for g in gradients], axis=1))
    jacobians = np.stack(rows, axis=1)
    return float(np.mean(np.linalg.svd(jacobians, compute_uv=False)))

"""Trainability of a network, measured by its input-output Jacobian."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import arrange_inputs
from keras_pcp.support import internals

DIRECTIONS = 16
_AT_ONCE = 32  # inputs in one pass
_MANY = 2**16  # outputs


def mean_singular_value(model: keras.Model, x: Any, *, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Returns the mean singular value of the Jacobian of a model's outputs with respect to its inputs.

    It is the mean over samples and over the singular values of each sample's Jacobian, at inference. Gradients that
    reach the first layers weakly or strongly show as a small or large value. If a sample has more outputs than
    `directions`, the Jacobian is projected on that many random orthonormal directions in the space of outputs, and the
    singular values are those of the projection. Then models with the same outputs can still be compared.

    Args:
        model: the model; all outputs count together. Its inputs must be floats.
        x: inputs, in the model's structure.
        directions: how many directions to use at most, at least 1. Each takes one backward pass per sample.
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
    traced, rng = program_of(model).trace, np.random.default_rng(seed)
    inputs, found = [np.asarray(a) for a in arrange_inputs(traced, x)], []
    size = sum(math.prod(o.shape[1:]) for o in _outputs(model, [a[:1] for a in inputs]))
    basis = _directions(size, directions, rng)
    step = max(1, _AT_ONCE // len(basis))
    for start in range(0, len(inputs[0]), step):
        few = [a[start : start + step] for a in inputs]
        jacobians = _projected(model, few, basis)
        found.append(np.linalg.svd(jacobians, compute_uv=False))
    return float(np.mean(np.concatenate(found)))


def _outputs(model: keras.Model, inputs: list) -> list:
    with internals.stateless():
        return tree.flatten(model(tree.pack_sequence_as(model.input, inputs), training=False))


def _directions(size: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Returns orthonormal directions in the space of outputs as rows; for many outputs, nearly orthonormal ones."""
    if size <= most:
        return np.eye(size, dtype="float32")
    if size <= _MANY:
        return np.linalg.qr(rng.normal(size=(size, most)))[0].T.astype("float32")
    return rng.choice(np.array([-1, 1], "float32"), (most, size)) / np.float32(np.sqrt(size))


def _projected(model: keras.Model, inputs: list[np.ndarray], basis: np.ndarray) -> np.ndarray:
    """Returns the Jacobians (samples, directions, inputs), with one pass for all: each sample is repeated per direction."""
    count = len(inputs[0])
    repeated = [tf.convert_to_tensor(np.repeat(a, len(basis), axis=0)) for a in inputs]
    with tf.GradientTape() as tape:
        tape.watch(repeated)
        outputs = [tf.reshape(tf.cast(o, "float32"), (count * len(basis), -1)) for o in _outputs(model, repeated)]
        along = tf.reduce_sum(tf.concat(outputs, axis=1) * np.tile(basis, (count, 1)))
    gradients = tape.gradient(along, repeated, unconnected_gradients="zero")
    rows = [np.reshape(np.asarray(g, "float64"), (count, len(basis), -1)) for g in gradients]
    return np.concatenate(rows, axis=2)

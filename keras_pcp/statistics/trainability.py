"""Trainability of a network, measured by its input-output Jacobian."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import arrange_inputs, tensor_sizes
from keras_pcp.support import internals

DIRECTIONS = 16
_AT_ONCE = 32  # inputs in one pass
_MANY = 2**16  # outputs
_BYTES = 2**30


def mean_singular_value(model: keras.Model, x: Any, *, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Returns the mean singular value of the Jacobian of a model's outputs with respect to its inputs.

    It is the mean over samples and over the singular values of each sample's Jacobian, at inference. Gradients that
    reach the first layers weakly or strongly show as a small or large value. If a sample has more outputs than
    `directions`, the Jacobian is projected on that many random directions in the space of outputs, orthonormal ones up
    to 65,536 outputs and nearly so above. The singular values are those of the projection. Then models with the same
    outputs can still be compared.

    Args:
        model: the model; all outputs count together. Its inputs must be floats.
        x: inputs, in the model's structure.
        directions: how many directions to use at most, at least 1. Each takes one backward pass per sample.
        seed: for the draw of directions.

    Returns:
        The mean; NaN if a gradient is not finite, or if the tensors of a single pass would take more than 1 GiB.

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
    inputs = [np.asarray(a) for a in arrange_inputs(traced, x)]
    sizes = tensor_sizes(traced, inputs)
    at_once = min(_AT_ONCE, _BYTES // (4 * sum(sizes)))
    if not at_once:
        return float("nan")
    basis = _directions(sum(sizes[i] for i in traced.outputs), directions, np.random.default_rng(seed))
    pairs = [(n, d) for n in range(len(inputs[0])) for d in range(len(basis))]
    rows = [_gradients(model, inputs, basis, pairs[i : i + at_once]) for i in range(0, len(pairs), at_once)]
    jacobians = np.concatenate(rows).reshape(len(inputs[0]), len(basis), -1).astype(float)
    return float(np.mean(_singular_values(jacobians))) if np.isfinite(jacobians).all() else float("nan")


def _singular_values(matrices: np.ndarray) -> np.ndarray:
    """Returns the singular values of matrices that are far longer along one axis, from the products along that axis."""
    across = matrices.swapaxes(1, 2)
    products = matrices @ across if matrices.shape[1] <= matrices.shape[2] else across @ matrices
    return np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0.0))


def _directions(size: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Returns orthonormal directions in the space of outputs as rows; for many outputs, nearly orthonormal ones."""
    if size <= most:
        return np.eye(size, dtype="float32")
    if size <= _MANY:
        return np.linalg.qr(rng.normal(size=(size, most)))[0].T.astype("float32")
    signs = rng.integers(0, 2, (most, size), dtype="int8")
    return (2 * signs - 1).astype("float32") / np.float32(np.sqrt(size))


def _gradients(model: keras.Model, inputs: list, basis: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Returns the gradient of a direction of the outputs for each pair (sample, direction): (pairs, inputs)."""
    samples, numbers = map(list, zip(*pairs, strict=True))
    given = [tf.convert_to_tensor(a[samples]) for a in inputs]
    with internals.stateless(), tf.GradientTape() as tape:
        tape.watch(given)
        outputs = tree.flatten(model(tree.pack_sequence_as(model.input, given), training=False))
        flat = tf.concat([tf.reshape(tf.cast(o, "float32"), (len(pairs), -1)) for o in outputs], axis=1)
        along = tf.reduce_sum(flat * basis[numbers])
    gradients = tape.gradient(along, given, unconnected_gradients="zero")
    return np.concatenate([np.reshape(np.asarray(g, "float32"), (len(pairs), -1)) for g in gradients], axis=1)

"""Computes in closed form how far the layers that read a group can make up for the channels that it loses.

Remove rows R of a kernel W and change the others so that the layer's outputs change least:

    min ||P (W' - W)||^2 + penalty ||W' - W||^2  with W'_R = 0,  solved by  W' = W - H[:, R] H[R, R]^-1 W_R.

P is what the layer reads, and H is the inverse of P^T P + penalty. This is the Optimal Brain Surgeon for a set of weights. H
is computed once for all attempts of a round. An attempt then only solves a system as large as the set that it removes. For
a single cut, it takes less to solve for the rows K that stay, without H:

    W'_K = W_K + (P^T P + penalty)[K, K]^-1 (P^T P)[K, R] W_R.

References:
    Hassibi & Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, NIPS 1992.
    Frantar, Singh & Alistarh, Optimal Brain Compression, NeurIPS 2022, arXiv 2208.11580, for sets of weights.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np

from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import Step, arrange_inputs, replay_calls
from keras_pcp.statistics.layer_inputs import (
    POSITIONS,
    Window,
    as_floats,
    draw,
    kernel_array,
    kernel_matrix,
    patches,
    penalized,
    window_of,
)
from keras_pcp.support import internals

# Layers that read more numbers at a position are left alone: the matrix of their products would take over 512 MiB.
_MOST_ROWS = 8192


@dataclass(frozen=True, eq=False)
class _Reader:
    """Statistics of what a layer reads: second moments, also penalized, (groups, rows, rows); means (groups, 1, rows)."""

    layer: Any
    window: Window
    moments: np.ndarray
    penalized: np.ndarray
    mean: np.ndarray

    @cached_property
    def inverse(self) -> np.ndarray:
        """H, (groups, rows, rows)."""
        return np.linalg.inv(self.penalized)


class Compensation:
    """Computes new weights of plain convolutions and dense layers that are called once, for any channels that they lose.

    Args:
        model: the current model, with no channels masked.
        kernels: indices, in the model's weights, of the kernels that may lose channels.
        x: inputs, in the model's structure.
        ridge: weight of the squared change of a kernel, in units of the mean squared norm of what it reads at a position.
        seed: for the draw of output positions.
    """

    def __init__(self, model: keras.Model, kernels: Collection[int], x: Any, ridge: float = 0.1, seed: int = 0):
        self.weights = model.weights
        self.index = {id(w): i for i, w in enumerate(self.weights)}
        traced, rng = program_of(model).trace, np.random.default_rng(seed)
        called = [id(call.operation) for call in traced.calls]
        self.readers: dict[int, _Reader] = {}
        with internals.stateless():
            for step in replay_calls(traced, arrange_inputs(traced, x)):
                layer = step.call.operation
                window = window_of(layer, len(step.input.shape)) if called.count(id(layer)) == 1 else None
                small = window is not None and np.prod(layer.kernel.shape[:-1]) <= _MOST_ROWS
                if small and self.index[id(layer.kernel)] in kernels:
                    self.readers[self.index[id(layer.kernel)]] = _reader(step, window, ridge, rng)

    def values(self, masks: Mapping[int, np.ndarray], once: bool = False) -> dict[int, np.ndarray]:
        """Returns new values of kernels and biases, by their index in the model's weights.

        Args:
            masks: {index: boolean array that broadcasts to the weight}, False where a channel is no longer read. Weights
                that are not kernels of such layers are ignored.
            once: whether this is the only question, so that H is not worth its time. The values are the same.
        """
        found = {}
        for i in masks.keys() & self.readers.keys():
            reader = self.readers[i]
            kernel = as_floats(self.weights[i]).astype(float)
            matrix = kernel_matrix(reader.window, kernel)
            gone = ~kernel_matrix(reader.window, np.broadcast_to(masks[i], kernel.shape))[0, :, 0]
            new = (_solved if once else _by_inverse)(reader, matrix, gone) * ~gone[:, None]
            found[i] = kernel_array(new, kernel.shape)
            if reader.layer.use_bias:
                bias = reader.layer.bias
                found[self.index[id(bias)]] = as_floats(bias) + (reader.mean @ (matrix - new)).ravel()
        return found

    def errors(
        self, masks: Mapping[int, np.ndarray], values: Mapping[int, np.ndarray]
    ) -> dict[str, tuple[float, float]]:
        """Returns how much of the outputs is lost: {layer: (if channels are only removed, with new values)}.

        Each is the mean squared error in units of the mean square of the outputs, on the samples of the constructor. Where
        the layer has a bias, means do not count.
        """
        found = {}
        for i in masks.keys() & self.readers.keys():
            reader = self.readers[i]
            kernel = as_floats(self.weights[i]).astype(float)
            matrix = kernel_matrix(reader.window, kernel)
            changes = [kernel_matrix(reader.window, v) - matrix for v in (np.where(masks[i], kernel, 0.0), values[i])]
            whole = _energy(matrix, reader.moments) or 1.0
            found[reader.layer.name] = tuple(_energy(change, reader.moments) / whole for change in changes)
        return found


def _by_inverse(reader: _Reader, matrix: np.ndarray, gone: np.ndarray) -> np.ndarray:
    within = np.linalg.solve(reader.inverse[:, gone][:, :, gone], matrix[:, gone])
    return matrix - reader.inverse[:, :, gone] @ within


def _solved(reader: _Reader, matrix: np.ndarray, gone: np.ndarray) -> np.ndarray:
    new, kept = matrix.copy(), ~gone
    right = reader.penalized[:, kept][:, :, gone] @ matrix[:, gone]
    new[:, kept] += np.linalg.solve(reader.penalized[:, kept][:, :, kept], right)
    return new


def _energy(matrix: np.ndarray, moments: np.ndarray) -> float:
    """Returns the sum of squares of P @ matrix, where `moments` is P^T P."""
    return float(np.sum(matrix * (moments @ matrix)))


def _reader(step: Step, window: Window, ridge: float, rng: np.random.Generator) -> _Reader:
    chosen = draw(rng, len(step.input), window.space(step.input.shape), POSITIONS)
    read = patches(window, step.input, chosen).astype(float)
    mean = read.mean(axis=1, keepdims=True) * step.call.operation.use_bias
    apart = read - mean
    moments = apart.swapaxes(1, 2) @ apart
    return _Reader(step.call.operation, window, moments, penalized(moments, apart.shape[1], ridge), mean)

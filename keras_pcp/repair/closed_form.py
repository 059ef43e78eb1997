"""Computes in closed form how far the layers that read a group can make up for the channels that it loses.

Remove rows R of a kernel W and change the others so that the layer's outputs change least:

    min ||P (W' - W)||^2 + penalty ||W' - W||^2  with W'_R = 0,  solved by  W' = W - H[:, R] H[R, R]^-1 W_R.

P is what the layer reads, and H is the inverse of P^T P + penalty. This is the Optimal Brain Surgeon for a set of weights. H
is computed once for all attempts of a round. An attempt then only solves a system as large as the set that it removes. For
a single cut, `corrected` solves for the rows K that stay instead, without H. With E = P_R W_R, what the outputs lose:

    W'_K = W_K + (P_K^T P_K + penalty)^-1 P_K^T E = W_K + P_K^T (P_K P_K^T + penalty)^-1 E.

References:
    Hassibi & Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, NIPS 1992.
    Frantar, Singh & Alistarh, Optimal Brain Compression, NeurIPS 2022, arXiv 2208.11580, for sets of weights.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
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
    penalty,
    window_of,
)
from keras_pcp.support import internals

# Layers that read more numbers at a position are not corrected: with as many positions, a matrix would take over 512 MiB.
_MOST_ROWS = 8192


@dataclass(frozen=True, eq=False)
class _Reader:
    """Statistics of a layer's inputs: inverse second moments (groups, rows, rows); means (groups, 1, rows) with a bias."""

    layer: Any
    window: Window
    inverse: np.ndarray
    mean: np.ndarray


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
        rng, self.readers = np.random.default_rng(seed), {}
        for i, step, window in _reads(model, self.index, kernels, x):
            apart, mean = _read(step, window, rng)
            gram = penalized(apart.swapaxes(1, 2) @ apart, apart.shape[1], ridge)
            self.readers[i] = _Reader(step.call.operation, window, np.linalg.inv(gram), mean)

    def values(self, masks: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Returns new values of kernels and biases, by their index in the model's weights.

        Args:
            masks: {index: boolean array that broadcasts to the weight}, False where a channel is no longer read. Weights
                that are not kernels of such layers are ignored.
        """
        found = {}
        for i in masks.keys() & self.readers.keys():
            reader = self.readers[i]
            kernel = as_floats(self.weights[i]).astype(float)
            matrix = kernel_matrix(reader.window, kernel)
            gone = ~kernel_matrix(reader.window, np.broadcast_to(masks[i], kernel.shape))[0, :, 0]
            within = np.linalg.solve(reader.inverse[:, gone][:, :, gone], matrix[:, gone])
            new = (matrix - reader.inverse[:, :, gone] @ within) * ~gone[:, None]
            found[i] = kernel_array(new, kernel.shape)
            if reader.layer.use_bias:
                bias = reader.layer.bias
                found[self.index[id(bias)]] = as_floats(bias) + (reader.mean @ (matrix - new)).ravel()
        return found


def corrected(
    model: keras.Model, masks: Mapping[int, np.ndarray], x: Any, ridge: float = 0.1, seed: int = 0
) -> tuple[dict[int, np.ndarray], dict[int, tuple[float, float]]]:
    """Computes what `Compensation` does, for one set of channels, and how much of the layers' outputs is lost.

    Args:
        model, x, ridge, seed: as in `Compensation`.
        masks: as in `Compensation.values`.

    Returns:
        New values as in `Compensation.values`, and {index of a kernel: (error if channels are only removed, error with the
        new values)}: mean squared errors of the layer's outputs on `x`, in units of their mean square. If the layer has a
        bias, means do not count. Layers that read NaN or infinite values are left out, and layers that read more than 8192
        numbers for an output.
    """
    weights = model.weights
    index = {id(w): i for i, w in enumerate(weights)}
    values, errors, rng = {}, {}, np.random.default_rng(seed)
    for i, step, window in _reads(model, index, masks, x):
        layer = step.call.operation
        kernel = as_floats(weights[i]).astype(float)
        if math.prod(kernel.shape[:-1]) > _MOST_ROWS:
            continue
        read, mean = _read(step, window, rng)
        squares, matrix = np.einsum("gpr,gpr->g", read, read), kernel_matrix(window, kernel)
        if not np.isfinite(squares).all():
            continue
        kept = kernel_matrix(window, np.broadcast_to(masks[i], kernel.shape))[0, :, 0]
        here, lost = read[:, :, kept], read[:, :, ~kept] @ matrix[:, ~kept]
        change = _regressed(here, lost, penalty(squares, read.shape[1], ridge))
        whole = np.square(read @ matrix).sum() or 1.0
        before, after = (float(np.square(left).sum() / whole) for left in (lost, lost - here @ change))
        errors[i] = before, after
        new = matrix * kept[:, None]
        new[:, kept] += change
        values[i] = kernel_array(new, kernel.shape)
        if layer.use_bias:
            values[index[id(layer.bias)]] = as_floats(layer.bias) + (mean @ (matrix - new)).ravel()
    return values, errors


def _regressed(read: np.ndarray, outputs: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns the kernel that gives some outputs best, with a penalty; solves the smaller of two systems."""
    turned = read.swapaxes(1, 2)
    if read.shape[1] < read.shape[2]:
        return turned @ np.linalg.solve(read @ turned + weight * np.eye(read.shape[1]), outputs)
    return np.linalg.solve(turned @ read + weight * np.eye(read.shape[2]), turned @ outputs)


def _reads(
    model: keras.Model, index: Mapping[int, int], kernels: Collection[int], x: Any
) -> Iterator[tuple[int, Step, Window]]:
    """Runs the model; yields the index of each kernel of a plain layer that is called once, its call, and its window."""
    traced = program_of(model).trace
    called = [id(call.operation) for call in traced.calls]
    with internals.stateless():
        for step in replay_calls(traced, arrange_inputs(traced, x)):
            layer = step.call.operation
            window = window_of(layer, len(step.input.shape)) if called.count(id(layer)) == 1 else None
            if window is not None and index[id(layer.kernel)] in kernels:
                yield index[id(layer.kernel)], step, window


def _read(step: Step, window: Window, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a layer reads at some positions, less its mean if the layer has a bias, and the mean."""
    chosen = draw(rng, len(step.input), window.space(step.input.shape), POSITIONS)
    read = patches(window, step.input, chosen).astype(float)
    mean = read.mean(axis=1, keepdims=True) * step.call.operation.use_bias
    return read - mean, mean

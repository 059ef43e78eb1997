"""Inputs of convolutions and dense layers at single output positions, which turn the layers into matrix products.

A dense layer is treated as a convolution with one tap at each position of the axes between the first and the last.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

L = keras.layers
POSITIONS = 10  # number of output positions used of each map, as in the papers


@dataclass(frozen=True)
class Window:
    """Where a layer reads: one entry per spatial axis; `groups` of channels are read separately."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str = "valid"
    groups: int = 1

    def along(self, axis: int, extent: int) -> tuple[int, int]:
        """Returns (number of output positions, zeros in front) along an axis of the input of length `extent`."""
        stride, span = self.strides[axis], (self.size[axis] - 1) * self.dilation[axis] + 1
        added = {
            "valid": 0,
            "same": max((math.ceil(extent / stride) - 1) * stride + span - extent, 0),
            "causal": span - 1,
        }[self.padding]
        return (extent + added - span) // stride + 1, added if self.padding == "causal" else added // 2

    def space(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the output's extents along the spatial axes for an input of shape (samples, *space, channels)."""
        return tuple(self.along(axis, extent)[0] for axis, extent in enumerate(shape[1:-1]))


def window_of(layer: Any, rank: int) -> Window | None:
    """Returns where a layer reads inputs with `rank` axes; None unless it is a plain convolution or dense layer.

    Example:
        >>> window_of(keras.layers.Conv1D(4, 3, strides=2, padding="same"), 3)
        Window(size=(3,), strides=(2,), dilation=(1,), padding='same', groups=1)
    """
    if type(layer) not in (L.Dense, L.Conv1D, L.Conv2D, L.Conv3D) or len(layer.weights) > 1 + layer.use_bias:
        return None  # other weights come from quantization or low-rank adaptation
    if type(layer) is L.Dense:
        ones = (1,) * (rank - 2)
        return Window(ones, ones, ones)
    return Window(layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding, layer.groups)


def as_floats(x: Any) -> np.ndarray:
    """Returns a tensor or variable as an array of float32, or of float64 if that is its type."""
    return np.asarray(x, "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32")


def draw(rng: np.random.Generator, samples: int, space: tuple[int, ...], count: int) -> np.ndarray:
    """Draws output positions of each sample, or takes all of them if there are no more than `count`.

    Returns:
        int array (samples, positions): numbers of positions in the order of the flattened spatial axes.
    """
    size = math.prod(space)
    if size <= count:
        return np.tile(np.arange(size), (samples, 1))
    return rng.integers(0, size, (samples, count))


def patches(window: Window, x: Any, chosen: np.ndarray) -> np.ndarray:
    """Returns the inputs that a layer reads for some output positions.

    Args:
        window: where the layer reads.
        x: array or tensor (samples, *space, channels): the layer's input.
        chosen: int array (samples, positions), as `draw` returns them.

    Returns:
        Array (groups, samples * positions, taps * channels of a group). Its product with `kernel_matrix` is the layer's
        output before bias and activation.
    """
    x = as_floats(x)
    space = window.space(x.shape)
    taps = np.array(list(np.ndindex(window.size)), int).reshape(math.prod(window.size), len(space))
    index, inside = [np.arange(len(x))[:, None, None]], np.array(True)
    for axis, along in enumerate(np.unravel_index(chosen, space) if space else ()):
        extent, front = x.shape[1 + axis], window.along(axis, x.shape[1 + axis])[1]
        place = along[..., None] * window.strides[axis] + taps[:, axis] * window.dilation[axis] - front
        inside = inside & (place >= 0) & (place < extent)
        index.append(np.clip(place, 0, extent - 1))
    found = np.where(inside[..., None], x[tuple(index)], x.dtype.type(0))  # zeros at the padding
    found = np.broadcast_to(found, (*chosen.shape, len(taps), x.shape[-1]))
    found = found.reshape(chosen.size, len(taps), window.groups, -1)
    return np.moveaxis(found, 2, 0).reshape(window.groups, chosen.size, -1)


def kernel_matrix(window: Window, kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as an array (groups, taps * channels of a group, outputs of a group)."""
    rows = math.prod(kernel.shape[:-1])
    return np.moveaxis(kernel.reshape(rows, window.groups, -1), 1, 0)


def kernel_array(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a kernel of a given shape from its matrix: the inverse of `kernel_matrix`."""
    return np.moveaxis(matrix, 0, 1).reshape(shape)


def penalty(squares: np.ndarray, positions: int, ridge: float) -> np.ndarray:
    """Returns `ridge` times the mean squared norm of inputs, (groups, 1, 1); `squares` are the sums of all, (groups,)."""
    found = ridge * squares / positions
    return np.where(found > 0, found, 1)[:, None, None]  # 1 for a layer that reads only zeros


def penalized(gram: np.ndarray, positions: int, ridge: float) -> np.ndarray:
    """Returns sums of products of inputs, (groups, rows, rows), plus `penalty` on the diagonal."""
    return gram + penalty(np.trace(gram, axis1=1, axis2=2), positions, ridge) * np.eye(gram.shape[2])

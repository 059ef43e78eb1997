"""Small random data in the shapes of symbolic tensors, and a comparison of two results."""

from typing import Any

import keras
import numpy as np

from keras_pcp.support import internals

# Sizes used for an unknown extent and for the batch.
_EXTENT, _BATCH = 8, 2


def random_array(tensor: keras.KerasTensor, rng: np.random.Generator, spatial: int | None = None) -> np.ndarray:
    """Returns a random batch of two in the shape of a symbolic tensor; integers are 0 or 1.

    Args:
        tensor: gives shape and type.
        rng: source of the values.
        spatial: upper bound of the extents between the first and the last axis, if given.

    Raises:
        TypeError: the tensor holds neither numbers nor booleans.
    """
    if tensor.dtype == "string":
        raise TypeError("no random strings")
    shape = [_EXTENT if d is None else d for d in tensor.shape]
    if shape and tensor.shape[0] is None:
        shape[0] = _BATCH
    if spatial is not None:
        shape[1:-1] = [min(d, spatial) for d in shape[1:-1]]
    if keras.backend.is_float_dtype(tensor.dtype):
        return rng.normal(size=shape).astype("float32")
    return rng.integers(0, 2, shape).astype(tensor.dtype)


def random_tensor(tensor: keras.KerasTensor, rng: np.random.Generator, spatial: int | None = None) -> Any:
    """Returns `random_array` as a tensor, with a random mask if the symbolic one has a mask."""
    found = keras.ops.convert_to_tensor(random_array(tensor, rng, spatial), tensor.dtype)
    mask = internals.mask_of(tensor)
    return found if mask is None else internals.with_mask(found, rng.random(found.shape[: len(mask.shape)]) < 0.7)


def same(a: Any, b: Any) -> bool:
    """Returns whether two tensors, masks included, are equal up to rounding; None equals only None."""
    if a is None or b is None:
        return a is b
    if not (keras.ops.is_tensor(a) and keras.ops.is_tensor(b)):
        return type(a) is type(b)
    kind = keras.backend.standardize_dtype(a.dtype)
    if kind != keras.backend.standardize_dtype(b.dtype) or tuple(a.shape) != tuple(b.shape):
        return False
    if not same(internals.mask_of(a), internals.mask_of(b)):
        return False
    if not keras.backend.is_float_dtype(kind):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    tolerance = 2e-2 if kind in ("float16", "bfloat16") else 1e-5
    a, b = (np.asarray(keras.ops.cast(v, "float32")) for v in (a, b))
    finite = np.isfinite(b)
    largest = np.abs(b[finite]).max(initial=0.0)
    return bool(
        np.array_equal(finite, np.isfinite(a)) and np.all(np.abs(a - b)[finite] <= tolerance * max(largest, 1e-6))
    )

"""A fixed draw of labelled samples, as arrays."""

from typing import Any

import numpy as np
from keras import tree

from keras_pcp.errors import InvalidArgumentError


def take_samples(data: Any, samples: int | None, seed: int, name: str = "data") -> tuple[Any, Any, Any]:
    """Returns (x, y, sample_weight or None) as arrays, at most `samples` of them, drawn at random.

    Args:
        data: (x, y) or (x, y, sample_weight) of arrays or structures of arrays, or anything that yields such batches,
            such as a tf.data.Dataset (then the first samples are taken).
        samples: number of samples, None for all.
        seed: for the draw.
        name: what the caller calls the data, for messages.

    Raises:
        InvalidArgumentError: no data, no labels, or arrays of different lengths.
    """
    if data is None:
        raise InvalidArgumentError(f"{name} is None; labelled samples are needed: (x, y) or a dataset")
    if isinstance(data, tuple | list):
        arrays = tree.map_structure(np.asarray, _unpacked(data, name))
        count = count_samples(arrays, name)
        chosen = np.arange(count)
        if samples is not None and samples < count:
            chosen = np.sort(np.random.default_rng(seed).permutation(count)[:samples])
        return (*tree.map_structure(lambda a: a[chosen], arrays), None)[:3]
    batches, count = [], 0
    for batch in data:
        batches.append(tree.map_structure(np.asarray, _unpacked(batch, name)))
        count += count_samples(batches[-1], name)
        if samples is not None and count >= samples:
            break
    if not batches:
        raise InvalidArgumentError(f"{name} is empty; labelled samples are needed")
    arrays = tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
    return (*tree.map_structure(lambda a: a[:samples], arrays), None)[:3]


def with_any_labels(data: Any) -> Any:
    """Adds labels to an array of inputs alone, for those who do not look at labels; other data stays as it is."""
    return (data, np.zeros(len(data))) if hasattr(data, "shape") and np.ndim(data) else data


def _unpacked(data: Any, name: str) -> tuple:
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise InvalidArgumentError(
            f"{name} must be (x, y) or (x, y, sample_weight), or a dataset of such batches; "
            f"got {type(data).__name__}" + (f" of length {len(data)}" if isinstance(data, tuple | list) else "")
        )
    if data[1] is None:
        raise InvalidArgumentError(
            f"{name} has no labels: its second part is None; labelled samples are needed: (x, y)"
        )
    return tuple(part for part in data if part is not None)


def count_samples(arrays: Any, name: str = "data") -> int:
    """Returns the length that all arrays of a structure have."""
    lengths = {len(a) if np.ndim(a) else 0 for a in tree.flatten(arrays)}
    if lengths == {0} or not lengths:
        raise InvalidArgumentError(f"{name} is empty; labelled samples are needed")
    if len(lengths) > 1:
        raise InvalidArgumentError(f"{name} holds arrays of different lengths: {sorted(lengths)}")
    return lengths.pop()

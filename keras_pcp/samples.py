"""A fixed draw of labelled samples, as arrays."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import tree

from keras_pcp.errors import InvalidArgumentError

# Data of unknown length that goes on for longer than this counts as endless, where all of it is asked for.
_MOST_SAMPLES, _MOST_BYTES = 2**20, 2**33


def take_samples(data: Any, samples: int | None, seed: int, name: str = "data") -> tuple[Any, Any, Any]:
    """Returns (x, y, sample_weight or None) as arrays, at most `samples` of them, drawn at random.

    Args:
        data: (x, y) or (x, y, sample_weight) of arrays or structures of arrays, or anything that yields such batches,
            such as a tf.data.Dataset (then the first samples are taken).
        samples: number of samples, None for all.
        seed: for the draw.
        name: what the caller calls the data, for messages.

    Raises:
        InvalidArgumentError: no data, no labels, arrays of different lengths, or all samples of a dataset that has no end
            (or of one of unknown length that goes on for more than 2**20 samples or 8 GiB).
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
    for batch in data if samples is not None else _all_batches(data, name):
        batches.append(tree.map_structure(np.asarray, _unpacked(batch, name)))
        count += count_samples(batches[-1], name)
        if samples is not None and count >= samples:
            break
    if not batches:
        raise InvalidArgumentError(f"{name} is empty; labelled samples are needed")
    arrays = tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
    return (*tree.map_structure(lambda a: a[:samples], arrays), None)[:3]


def _all_batches(data: Any, name: str) -> Iterator[Any]:
    """Yields all batches of a dataset, and refuses one that has no end or seems to have none."""
    cardinality = int(data.cardinality()) if callable(getattr(data, "cardinality", None)) else None
    if cardinality == -1:  # what tf.data gives for a dataset without an end
        raise InvalidArgumentError(
            f"{name} is a dataset without an end, and samples=None would read all of it; leave out .repeat(), or give "
            "samples a number"
        )
    if cardinality is None and hasattr(data, "__len__"):  # a PyDataset goes on after its end where it is only iterated
        yield from (batch for batch, _ in zip(data, range(len(data)), strict=False))
        return
    count = size = 0
    for batch in data:
        arrays = [np.asarray(a) for a in tree.flatten(batch)]
        count += len(arrays[0]) if arrays and arrays[0].ndim else 1
        size += sum(a.nbytes for a in arrays)
        if (cardinality is None or cardinality < 0) and (count > _MOST_SAMPLES or size > _MOST_BYTES):
            raise InvalidArgumentError(
                f"{name} has not ended after {count:,} samples, and samples=None would read all of it; give samples a "
                "number, or give the data as arrays or as a dataset of known length"
            )
        yield batch


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

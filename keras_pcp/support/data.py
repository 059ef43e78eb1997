"""Draws labelled samples as arrays, and checks the data that users pass."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import checks, internals

_PARTS = ("x", "y", "sample_weight")
# If all of the data is needed, data of unknown length counts as endless beyond these limits.
_MOST_SAMPLES, _MOST_BYTES = 2**20, 2**33


def take_samples(data: Any, samples: int | None, seed: int, name: str = "data") -> tuple[Any, Any, Any]:
    """Returns (x, y, sample_weight or None) as arrays of at most `samples` samples, drawn at random.

    Inputs and sample weights must be finite numbers (inputs may also be strings), and some weight must not be 0. Labels must
    be numbers, but need not be finite: a loss may ignore labels that are NaN.

    Args:
        data: (x, y) or (x, y, sample_weight) of arrays or structures of arrays; or an object that yields such batches,
            such as a tf.data.Dataset (then the first samples are taken).
        samples: number of samples; None for all.
        seed: for the draw.
        name: name of the data in messages.

    Raises:
        InvalidArgumentError: there is no data or no labels, arrays have different lengths, or values are not numbers; or
            all samples are requested from a dataset without an end, or from one of unknown length with more than 2**20
            samples or 8 GiB.
    """
    check_source(data, name)
    if isinstance(data, tuple | list):
        drawn = _drawn(_arrays(data, name), samples, seed, name)
    else:
        if samples is None:
            _check_end(data, name)
        drawn = _first(_batches(data, name, capped=samples is None), samples, name)
    x, y, weight = (*drawn, None)[:3]
    _check_finite(x, f"{name}: x")
    flat = [w for w in tree.flatten(weight) if w is not None]
    _check_finite(flat, f"{name}: sample_weight")
    if flat and not any(w.any() for w in flat):
        raise InvalidArgumentError(
            f"all sample weights of {name} that were drawn are 0, so nothing can be measured on it; pass no weights, or "
            "give some samples a weight above 0"
        )
    return x, y, weight


def take_inputs(data: Any, name: str) -> np.ndarray:
    """Returns only inputs: an array, or all batches of a dataset joined. Other parts of a batch are ignored.

    Raises:
        InvalidArgumentError: there are no inputs, or they are not one array of finite numbers.
    """
    if hasattr(data, "shape"):  # an array or a tensor
        found = _array(data, "x", name)
    elif isinstance(data, tuple | list | Mapping | str | bytes | type) or not _can_be_read(data):
        raise checks.refusal(name, "an array of inputs or a dataset of batches of them", data)
    else:
        _check_end(data, name)
        batches = (batch[0] if isinstance(batch, tuple | list) and batch else batch for batch in data)
        taken = [(_array(_one_array(batch, name), "x", name),) for batch in batches]
        [found] = _joined(taken, name) if taken else [np.zeros(0)]
    count_samples(found, name)
    _check_finite(found, name)
    return found


def _one_array(batch: Any, name: str) -> Any:
    if isinstance(batch, Mapping | tuple | list):
        raise checks.refusal(name, "a dataset of batches of one array of inputs", batch)
    return batch


def check_source(data: Any, name: str = "data", function: bool = False) -> None:
    """Raises InvalidArgumentError if data of this type cannot hold labelled samples. The data is not read.

    Args:
        data: the data that the user passes.
        name: name of the data in messages.
        function: whether it may also be a function that returns the samples.
    """
    advice = ""
    if isinstance(data, Mapping):
        advice = "pass (data[...], data[...]), the inputs and the labels"
    elif callable(data) and not isinstance(data, Iterable) and not function:
        advice = "pass what the function returns"
    wrong = isinstance(data, Mapping | str | bytes | type) or hasattr(data, "shape")
    if wrong or not (_can_be_read(data) or (function and callable(data))):
        kinds = "labelled samples: (x, y) of arrays, or a dataset of batches (x, y)"
        raise checks.refusal(name, kinds + (", or a function that returns them" if function else ""), data, advice)
    if not _can_be_read(data):
        checks.function(name, data, "labelled samples, or a function without arguments that returns them", takes=0)


def check_inputs(model: keras.Model, x: Any, name: str = "data") -> None:
    """Raises InvalidArgumentError if arrays do not fit the inputs of a model, as far as these are known."""
    functional = internals.functional_of(model)
    if functional is None:
        return
    tensors, arrays = functional.inputs, tree.flatten(x)
    if isinstance(x, Mapping):
        structure = functional.input if isinstance(functional.input, Mapping) else {}
        for names in (structure, {t.name: t for t in tensors}):
            if names and all(key in x for key in names):
                tensors, arrays = list(names.values()), [x[key] for key in names]
                break
        else:
            arrays = []  # Keras finds inputs by these names, too
    if len(arrays) != len(tensors) or not all(_fits(a, t) for a, t in zip(arrays, tensors, strict=True)):
        raise InvalidArgumentError(
            f"{name} does not fit the inputs of model {model.name!r}: x is {tree.map_structure(_described, x)}, the model "
            f"takes {tree.map_structure(_described, functional.input)}. x needs a batch axis in front; if {name} is a "
            "dataset that yields single samples, call .batch(32) on it"
        )


def with_any_labels(data: Any) -> Any:
    """Adds labels to an array of inputs, for callers that ignore labels; other data stays as it is."""
    return (data, np.zeros(len(data))) if hasattr(data, "shape") and np.ndim(data) else data


def count_samples(arrays: Any, name: str = "data") -> int:
    """Returns the common length of all arrays of a structure."""
    lengths = {len(a) if np.ndim(a) else 0 for a in tree.flatten(arrays)}
    if lengths == {0} or not lengths:
        raise InvalidArgumentError(f"{name} is empty; labelled samples are needed")
    if len(lengths) > 1:
        raise InvalidArgumentError(
            f"{name} holds arrays of different lengths: {sorted(lengths)}; x and y need one entry for each sample along "
            "their first axis. If it is a dataset that yields single samples, call .batch(32) on it"
        )
    return lengths.pop()


def _can_be_read(data: Any) -> bool:
    try:
        return isinstance(data, tuple | list | keras.utils.PyDataset) or iter(data) is not None
    except TypeError:
        return False


def _drawn(arrays: tuple, samples: int | None, seed: int, name: str) -> tuple:
    count = count_samples([a for a in tree.flatten(arrays) if a is not None], name)
    if samples is None or samples >= count:
        return arrays
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:samples])
    return tree.map_structure(lambda a: None if a is None else a[chosen], arrays)


def _first(batches: Iterator[tuple], samples: int | None, name: str) -> tuple:
    """Joins as many batches as needed; the last one may be cut."""
    taken, count = [], 0
    for batch in batches:
        taken.append(batch)
        count += count_samples([a for a in tree.flatten(batch) if a is not None], name)
        if samples is not None and count >= samples:
            break
    if not taken:
        raise InvalidArgumentError(f"{name} is empty; labelled samples are needed")
    return tree.map_structure(lambda a: None if a is None else a[:samples], _joined(taken, name))


def _joined(batches: list[tuple], name: str) -> tuple:
    try:
        return tree.map_structure(lambda *parts: None if parts[0] is None else np.concatenate(parts), *batches)
    except ValueError as error:
        raise InvalidArgumentError(f"the batches of {name} do not fit each other: {error}") from error


def _check_end(data: Any, name: str) -> None:
    """Raises InvalidArgumentError for a dataset without an end, which would be read forever."""
    if isinstance(data, tf.data.Dataset) and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise InvalidArgumentError(
            f"{name} is a dataset without an end, so not all of it can be read; remove .repeat(), or add .take(n)"
        )


def _batches(data: Any, name: str, capped: bool) -> Iterator[tuple]:
    """Yields the batches of a dataset; if `capped`, rejects one of unknown length that seems to have no end."""
    endless = capped and not hasattr(data, "__len__")
    if isinstance(data, tf.data.Dataset):  # len() of it raises if the length is unknown
        endless = capped and int(data.cardinality()) < 0
    # Iterating over a PyDataset need not end.
    batches = (data[i] for i in range(len(data))) if isinstance(data, keras.utils.PyDataset) else data
    count = size = 0
    for batch in batches:
        arrays = _arrays(batch, name)
        flat = [a for a in tree.flatten(arrays) if a is not None]
        count, size = count + len(flat[0]), size + sum(a.nbytes for a in flat)
        if endless and (count > _MOST_SAMPLES or size > _MOST_BYTES):
            raise InvalidArgumentError(
                f"{name} has not ended after {count:,} samples, and samples=None would read all of it; set samples to a "
                "number, or pass the data as arrays or as a dataset of known length"
            )
        yield arrays


def _arrays(data: Any, name: str) -> tuple:
    """Returns one batch, or all data, as (x, y) or (x, y, sample_weight) of arrays."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        what = f"{type(data).__name__} of length {len(data)}" if isinstance(data, tuple | list) else checks.shown(data)
        raise InvalidArgumentError(
            f"{name} must be (x, y) or (x, y, sample_weight), or a dataset of such batches; got {what}"
            + ("; bring it into this form with .map(lambda d: (d[...], d[...]))" if isinstance(data, Mapping) else "")
        )
    if data[1] is None:
        raise InvalidArgumentError(
            f"{name} has no labels: its second part is None; labelled samples are needed: (x, y)"
        )
    if data[0] is None:
        raise InvalidArgumentError(f"{name} has no inputs: its first part is None; labelled samples are needed: (x, y)")
    parts = zip(_PARTS, data, strict=False)
    return tuple(
        tree.map_structure(lambda a, part=part: _part_array(a, part, name), value)
        for part, value in parts
        if value is not None
    )


def _part_array(value: Any, part: str, name: str) -> np.ndarray | None:
    """As `_array`; but one of several outputs may have no weights."""
    return None if value is None and part == "sample_weight" else _array(value, part, name)


def _array(value: Any, part: str, name: str) -> np.ndarray:
    """Returns an array of numbers (inputs may be strings) with a batch axis."""
    try:
        array = np.asarray(value)
    except Exception as error:  # a custom class may raise anything
        raise checks.refusal(
            f"{part} of {name}", "an array of numbers", value, "its rows must be equally long"
        ) from error
    if array.ndim == 0:
        raise checks.refusal(
            f"{part} of {name}",
            "an array of numbers with a batch axis in front",
            value,
            "turn lists into arrays with np.asarray; if it is a dataset that yields single samples, call .batch(32) on it",
        )
    text = array.dtype.kind in "US" or (array.dtype.kind == "O" and all(isinstance(v, str | bytes) for v in array.flat))
    if (text and part != "x") or (not text and array.dtype.kind in "OMmVUS" and "float" not in str(array.dtype)):
        raise checks.refusal(f"{part} of {name}", "an array of numbers", array, "convert it with .astype('float32')")
    return array


def _check_finite(arrays: Any, what: str) -> None:
    for array in tree.flatten(arrays):
        if not checks.is_finite(array):
            bad = int(np.count_nonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1)))
            raise InvalidArgumentError(
                f"{what} has NaN or infinite values in {bad} of {len(array)} samples; remove these samples or repair them"
            )


def _fits(array: np.ndarray, tensor: keras.KerasTensor) -> bool:
    text = array.dtype.kind in "OUS"
    complex_ = array.dtype.kind == "c"
    if text != (str(tensor.dtype) == "string") or complex_ != str(tensor.dtype).startswith("complex"):
        return False
    shape = tuple(tensor.shape)
    if len(shape) - array.ndim == 1 and shape[-1] == 1:  # Keras adds this axis
        shape = shape[:-1]
    return len(shape) == array.ndim and all(a in (None, b) for a, b in zip(shape[1:], array.shape[1:], strict=True))


def _described(tensor: Any) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"

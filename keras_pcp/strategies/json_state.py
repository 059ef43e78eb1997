"""Converts states of strategies to JSON and back. Also supports tuples, arrays, selections and dataclasses."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.selection import Selection

_PLAIN = (bool, int, float, str, type(None))
_KIND = "kind"  # key of the dicts that represent types that JSON does not have


def to_json(value: Any) -> Any:
    """Returns a value as JSON-ready data.

    Raises:
        InvalidArgumentError: the value holds an unsupported type.

    Example:
        >>> data = to_json((1, {"a": np.array([1.5, 2.5])}))
        >>> number, rest = from_json(data, object)
        >>> number, rest["a"].tolist()
        (1, [1.5, 2.5])
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return [to_json(v) for v in value]
    if isinstance(value, tuple):
        return {_KIND: "tuple", "items": [to_json(v) for v in value]}
    if isinstance(value, Selection):
        return {_KIND: "selection", "items": value.to_json()}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {_KIND: "array", "dtype": str(value.dtype), "items": value.tolist()}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_KIND: "dict", "items": {key: to_json(v) for key, v in value.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {_KIND: type(value).__qualname__, "items": fields}
    raise InvalidArgumentError(
        f"the state of a strategy holds {type(value).__name__} {value!r:.60}, which cannot be saved; use numbers, strings, "
        "lists, tuples, dicts with str keys, arrays, selections and dataclasses of the strategy's own module"
    )


def from_json(data: Any, strategy: type) -> Any:
    """Undoes `to_json`.

    Args:
        data: what `to_json` returned.
        strategy: class of the strategy. Dataclasses are looked up in its module and in the modules of its base classes.

    Raises:
        InvalidArgumentError: a dataclass is not found there.
    """
    if isinstance(data, list):
        return [from_json(v, strategy) for v in data]
    if not isinstance(data, Mapping):
        return data
    kind, items = data[_KIND], data["items"]
    if kind == "tuple":
        return tuple(from_json(v, strategy) for v in items)
    if kind == "dict":
        return {key: from_json(v, strategy) for key, v in items.items()}
    if kind == "selection":
        return Selection.from_json(items)
    if kind == "array":
        return np.array(items, dtype=data["dtype"])
    return _dataclass(kind, strategy)(**{key: from_json(v, strategy) for key, v in items.items()})


def _dataclass(name: str, strategy: type) -> type:
    for cls in strategy.__mro__:
        found = vars(sys.modules[cls.__module__]).get(name)
        if dataclasses.is_dataclass(found) and isinstance(found, type):
            return found
    raise InvalidArgumentError(
        f"the state of {strategy.__name__} holds a {name}, which module {strategy.__module__} does not have"
    )

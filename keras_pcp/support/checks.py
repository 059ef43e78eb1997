"""Checks of arguments that the public functions share.

Each check returns the value, or raises an InvalidArgumentError that says what was passed, what was expected, and what to do.
A bool does not count as a number here. NumPy numbers do, and are returned as Python numbers.
"""

import inspect
import numbers
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, overload

import numpy as np

from keras_pcp.errors import InvalidArgumentError

_LONGEST = 60  # maximum number of characters of a value in a message


def shown(value: Any) -> str:
    """Returns the type of a value and how it begins, for messages.

    Example:
        >>> import numpy as np
        >>> shown(None), shown(3), shown("a"), shown(np.zeros((2, 3)))
        ('None', '3 (int)', "'a' (str)", 'a float64 array of shape (2, 3)')
    """
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}, not an object of it"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a class of the caller
        return f"an object of class {type(value).__name__}"
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{short} ({type(value).__name__})"


def refusal(name: str, expected: str, value: Any, advice: str = "") -> InvalidArgumentError:
    """Returns the error to raise for an argument that is not what was expected."""
    return InvalidArgumentError(f"{name} must be {expected}, got {shown(value)}" + (f"; {advice}" if advice else ""))


def instance(name: str, value: Any, kind: type | UnionType | tuple, expected: str, advice: str = "") -> Any:
    """Returns the value if it is an instance of a class.

    Example:
        >>> instance("layer", 3, str, "a name")
        Traceback (most recent call last):
        keras_pcp.errors.InvalidArgumentError: layer must be a name, got 3 (int)
    """
    if not isinstance(value, kind):
        raise refusal(name, expected, value, advice)
    return value


def number(name: str, value: Any, interval: str) -> float:
    """Returns the value if it is a real number in an interval, written as in mathematics.

    Example:
        >>> number("weight", 0.5, "(0, 1]")
        0.5
        >>> number("weight", float("nan"), "[0, inf)")
        Traceback (most recent call last):
        keras_pcp.errors.InvalidArgumentError: weight must be a number in [0, inf), got nan (float)
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise refusal(name, f"a number in {interval}", value)
    low, high = (float(end) for end in interval[1:-1].split(","))
    found = int(value) if isinstance(value, numbers.Integral) else float(value)
    above = found > low if interval[0] == "(" else found >= low
    below = found < high if interval[-1] == ")" else found <= high
    if not (above and below and abs(found) <= sys.float_info.max):
        raise refusal(name, f"a number in {interval}", value)
    return found


@overload
def count(name: str, value: Any, least: int = 1, optional: Literal[False] = False) -> int: ...
@overload
def count(name: str, value: Any, least: int = 1, *, optional: Literal[True]) -> int | None: ...
def count(name: str, value: Any, least: int = 1, optional: bool = False) -> int | None:
    """Returns the value if it is an int of at least `least`, or None if that is allowed.

    Example:
        >>> count("samples", None, optional=True), count("samples", 3)
        (None, 3)
    """
    if value is None and optional:
        return None
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise refusal(name, f"an int of at least {least}" + (" or None" if optional else ""), value)
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Returns the value if it is a bool."""
    return bool(instance(name, value, bool | np.bool_, "True or False"))


def choice(name: str, value: Any, allowed: Collection[Any]) -> Any:
    """Returns the value if it is one of the allowed values.

    Example:
        >>> choice("scope", "all", ("global", "local"))
        Traceback (most recent call last):
        keras_pcp.errors.InvalidArgumentError: scope must be one of 'global', 'local', got 'all' (str)
    """
    if not any(isinstance(value, type(a)) and value == a for a in allowed):
        raise refusal(name, f"one of {', '.join(map(repr, allowed))}", value)
    return value


def function(name: str, value: Any, expected: str, takes: int | None = None) -> Any:
    """Returns the value if it can be called with a number of arguments and is not a class.

    Example:
        >>> function("schedule", lambda: 1, "a function of one number", takes=1)
        Traceback (most recent call last):
        keras_pcp.errors.InvalidArgumentError: schedule must be a function of one number, but cannot be called with 1
        arguments: too many positional arguments
    """
    if not callable(value) or isinstance(value, type) or (takes is not None and _is_operation(value)):
        raise refusal(name, expected, value)
    if takes is None or (signature := _signature(value)) is None:
        return value
    try:
        signature.bind(*[None] * takes)
    except TypeError as error:
        raise InvalidArgumentError(
            f"{name} must be {expected}, but cannot be called with {takes} arguments: {error}"
        ) from None
    return value


def names(name: str, value: Any) -> list[str]:
    """Returns a list of names; a single name counts as a list of one.

    Example:
        >>> names("frozen_layers", "conv"), names("frozen_layers", ("a", "b"))
        (['conv'], ['a', 'b'])
    """
    if isinstance(value, str):
        return [value]
    found = items(value)
    if found is None or not all(isinstance(each, str) for each in found):
        raise refusal(name, "a list of names", value)
    return [str(each) for each in found]


def items(value: Any) -> list[Any] | None:
    """Returns the items of a list, tuple, set or similar; None for anything else.

    Example:
        >>> items((1, 2)), items("ab"), items(3)
        ([1, 2], None, None)
    """
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim == 1 else None
    listed = isinstance(value, Collection | Iterator) and not isinstance(value, Mapping | str | bytes)
    return list(value) if listed else None


def is_finite(array: np.ndarray) -> bool:
    """Returns whether all numbers of an array are finite. An array without numbers, such as strings, counts as finite."""
    return array.dtype.kind in "OSUMm" or bool(np.isfinite(array).all())


def _signature(function: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # a built-in without a signature
        return None


def _is_operation(value: Any) -> bool:
    """Returns whether a value is a layer, model or operation of Keras, which this module does not import."""
    return any(c.__name__ == "Operation" and c.__module__.startswith("keras.") for c in type(value).__mro__)

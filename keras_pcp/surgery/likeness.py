"""Checks that layers that were rebuilt from their configs compute what the originals compute."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.graph.probing import random_tensor, same
from keras_pcp.graph.trace import Call, Trace, bound
from keras_pcp.support import internals

_PLAIN = (bool, int, float, str, type(None))
# Callables that make or restrict weights; outputs do not depend on them.
_ABOUT_WEIGHTS = (keras.initializers.Initializer, keras.regularizers.Regularizer, keras.constraints.Constraint)
_SPATIAL = 32


def first_unlike(original: Trace, copy: Trace) -> Any | None:
    """Returns the first operation of a model that computes something else in a copy of the model, or None.

    Keras layers and operations with the same settings and functions are certain to be equal, so they are not run. All others
    run on small random data, with the weights of the original. An operation that fails on such data, or gives a different
    result each time, is skipped.

    Args:
        original: the calls of the model.
        copy: the calls of the copy, with the same structure; its variables need no values yet.
    """
    known: dict[int, bool] = {}
    for mine, other in zip(original.calls, copy.calls, strict=True):
        operation = mine.operation
        if operation is None or known.get(id(operation)):
            continue
        if not _surely_alike(operation, other.operation) and not _compute_alike(original, mine, copy, other):
            return operation
        known[id(operation)] = True
    return None


def _surely_alike(a: Any, b: Any) -> bool:
    """Returns whether two operations have the same Keras class, settings and functions."""
    if type(a) is not type(b) or not type(a).__module__.startswith("keras."):
        return False
    others = vars(b)
    return all(
        _same_setting(value, others.get(name))
        for name, value in vars(a).items()
        if name not in internals.keras_attributes()
    )


def _same_setting(a: Any, b: Any) -> bool:
    if isinstance(a, keras.Operation):
        return _surely_alike(a, b)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_same_setting, a, b))
    if isinstance(a, _PLAIN):
        return type(a) is type(b) and a == b
    return a is b or not callable(a) or isinstance(a, _ABOUT_WEIGHTS)


def _compute_alike(original: Trace, mine: Call, copy: Trace, other: Call) -> bool:
    for spatial in (_SPATIAL, None):
        rng = np.random.default_rng(0)
        try:
            arrays = [random_tensor(original.tensors[i], rng, spatial) for i in mine.inputs]
            expected = _run(original, mine, arrays, [])
            again = _run(original, mine, arrays, [])
        except Exception:  # the code of the layer may raise anything on data that it is not made for
            continue
        if not all(map(same, again, expected)):
            return True  # nothing to compare with
        try:
            found = _run(copy, other, arrays, _values(mine.operation, other.operation))
        except Exception:  # the error will come again when the copy is used
            return True
        return len(found) == len(expected) and all(map(same, found, expected))
    return True


def _run(traced: Trace, call: Call, arrays: Sequence[Any], values: list[tuple[Any, Any]]) -> list[Any]:
    with internals.stateless(values):
        if values and hasattr(call.operation, "finalize_state"):
            call.operation.finalize_state()
        return tree.flatten(bound(traced, call, arrays).run())


def _values(operation: Any, other: Any) -> list[tuple[Any, Any]]:
    """Returns (variable of the copy, value of the operation's variable), including states of random generators."""
    if not isinstance(operation, keras.Layer):
        return []
    pairs = list(zip(operation.variables, other.variables, strict=False))
    return [(b, tf.convert_to_tensor(a.value)) for a, b in pairs if tuple(a.shape) == tuple(b.shape)]

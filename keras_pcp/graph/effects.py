"""Finds side effects of a call: observes the call, and compares a layer with its replacement."""

import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.graph.probing import random_tensor, same
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal

_PLAIN = (bool, int, float, complex, str, bytes, tuple, type(None))
_BY_NAME = {
    "assign": "assigns to a variable",
    "assign_add": "assigns to a variable",
    "assign_sub": "assigns to a variable",
    "add_loss": "adds a loss",
    "update_state": "updates a metric",
}


class SideEffect(Exception):
    """A call does more than compute its outputs. The text says what, and begins with "it" or "its"."""


def observed(layer: keras.Layer, call: Callable[[], Any]) -> Any:
    """Runs the `call` of a layer on symbolic tensors, and restores everything that it changes.

    The call cannot change variables: an assignment only becomes an operation of a graph that is thrown away. The layers
    that it calls run outside this graph, so their own effects in training do not count.

    Raises:
        SideEffect: the call does something beyond its outputs.
    """
    before = _noted(layer)
    try:
        result, operations = internals.recorded(call)
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name in _BY_NAME:
                raise SideEffect(f"it {_BY_NAME[frame.f_code.co_name]} in its call") from error
        raise
    finally:
        changed = _put_back(layer, before)
    if "_losses" in changed:
        raise SideEffect("it adds a loss in its call")
    for operation in operations:
        raise SideEffect(f"it {_named(operation)} in its call")
    if changed:
        raise SideEffect(f"its call changes its attribute {changed[0]!r}")
    return result


def _named(operation: str) -> str:
    if operation.startswith("Assign"):
        return "assigns to a variable"
    return "prints" if operation.startswith("Print") else f"runs the TensorFlow operation {operation}"


def _own_attributes(layer: keras.Layer) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name not in internals.keras_attributes()}


def _noted(layer: keras.Layer) -> dict[str, tuple[Any, Any]]:
    return {name: (value, _content(value)) for name, value in _own_attributes(layer).items()}


def keep_attributes(model: keras.Model, journal: Journal) -> None:
    """Makes the journal restore layer attributes that calls change. Layers that are built meanwhile stay built."""
    for layer in internals.layers_of(model):
        if layer.built:
            journal.note(partial(_put_back, layer, _noted(layer)))


def _content(value: Any) -> Any:
    """Returns the content of an attribute, to compare it later."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | set):
        return list(value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _put_back(layer: keras.Layer, before: dict[str, tuple[Any, Any]]) -> list[str]:
    """Restores the attributes of a layer, and returns the names of those that had changed."""
    after = _own_attributes(layer)
    changed = [n for n in after if n not in before]
    for name, (value, content) in before.items():
        now = after.get(name)
        if not (name in after and _equal(now, value) and _equal(_content(now), content)):
            changed.append(name)
    for name in changed:
        vars(layer).pop(name, None)
        if name in before:
            value, content = before[name]
            if isinstance(value, list):
                value[:] = content
            elif isinstance(value, dict):
                dict.clear(value)
                dict.update(value, content)
            elif isinstance(value, set):
                set.clear(value)
                set.update(value, content)
            elif isinstance(value, np.ndarray):
                np.copyto(value, content)
            vars(layer)[name] = value
    return changed


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, _PLAIN) and a == b


class _Caller(keras.Layer):
    """Calls a function as a model calls its layers, so that inner layers know whether they are in training."""

    def __init__(self, function: Callable):
        super().__init__(autocast=False, name="caller")
        self.function = function

    def call(self, tensors: Sequence[Any], training: bool | None = None) -> Any:
        return self.function(tensors, training)


_COMPARED: WeakKeyDictionary[type, dict[tuple, str | None]] = WeakKeyDictionary()


def why_not_the_same(
    layer: keras.Layer, other: Callable[..., list[Any]], structure: tuple, args: tuple, kwargs: dict
) -> str | None:
    """Compares a layer with its replacement on random data, and returns how they differ.

    The comparison covers outputs with their masks, losses, the new values of all variables and, in training, gradients.
    The layer is not changed. A layer that does not run on random data is not compared. Of layers of one class with the
    same structure, whatever their widths, only the first one is compared.

    Args:
        layer: a built layer.
        other: the replacement. It is called as `other(tensors, training)`, with the tensors among the arguments, and
            returns the flat outputs.
        structure: the structure of the replacement, see `Inside.structure`.
        args, kwargs: the arguments of the layer. Symbolic tensors in them are replaced by random ones.
    """
    known = _COMPARED.setdefault(type(layer), {})
    tensors = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
    inputs = tuple((len(t.shape), t.dtype, internals.mask_of(t) is None) for t in tensors)
    key = (structure, inputs, layer.dtype_policy.name, layer.trainable, layer.supports_masking)
    if key not in known:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the layer's code raises them; they appear again when the layer is used
            known[key] = _compare(layer, other, args, kwargs, tensors)
    return known[key]


def _compare(layer, other, args, kwargs, tensors) -> str | None:
    rng = np.random.default_rng(0)

    def closed(arrays: Sequence[Any], training: bool) -> list[Any]:
        place = {id(t): array for t, array in zip(tensors, arrays, strict=True)}
        found_args, found_kwargs = tree.map_structure(lambda v: place.get(id(v), v), (args, kwargs))
        return tree.flatten(layer(*found_args, **found_kwargs))

    for training in (True, False):
        try:
            arrays = [random_tensor(t, rng) for t in tensors]
            expected = _effects(layer, closed, arrays, training)
        except Exception:  # whatever the layer's code raises on data that it is not made for
            return None
        try:
            found = _effects(layer, other, arrays, training)
        except Exception as error:
            return f"what it runs cannot be run without it ({first_line(error)})"
        for what, values in expected.items():
            if len(values) != len(found[what]) or not all(map(same, found[what], values)):
                return f"what it runs gives other {what} without it" + (" in training" if training else "")
    return None


def _effects(layer: keras.Layer, call: Callable, arrays: Sequence[Any], training: bool) -> dict[str, list[Any]]:
    """Runs a call without changing any variable, and returns all effects that it would have had."""
    variables = layer.variables
    values = [(v, tf.convert_to_tensor(v.value)) for v in variables]
    trained = {id(v) for v in layer.trainable_variables}
    sources = [*arrays, *(value for v, value in values if id(v) in trained)]
    sources = [s for s in sources if keras.backend.is_float_dtype(s.dtype)]
    with internals.stateless(values, collect_losses=True) as scope, tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = _Caller(call)(list(arrays), training=training)
        rng = np.random.default_rng(1)
        total = sum(
            tf.reduce_sum(tf.cast(t, "float32") * rng.normal(size=t.shape).astype("float32"))
            for t in outputs
            if keras.backend.is_float_dtype(t.dtype)
        )
    gradients = tape.gradient(total, sources) if training and tf.is_tensor(total) else []
    return {
        "outputs": list(outputs),
        "gradients": [None if g is None else tf.convert_to_tensor(g) for g in gradients],
        "losses": [tf.convert_to_tensor(loss) for loss in scope.losses],
        "values of its variables": [scope.get_current_value(v) for v in variables],
    }


def first_line(error: Exception) -> str:
    """Returns the class and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"

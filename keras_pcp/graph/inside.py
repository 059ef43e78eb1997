"""Lists the calls that a layer makes in its `call`, and finds out whether the layer does anything else."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.graph.effects import SideEffect, first_line, observed
from keras_pcp.graph.listing import listed
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal, undone


def saveable(operation: Any) -> bool:
    """Returns whether an operation can be rebuilt from its config."""
    if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model):
        return True
    try:
        type(operation).from_config(operation.get_config())
    except Exception:  # whatever the layer's own code raises
        return False
    return True


@dataclass(frozen=True, eq=False)
class Inside:
    """The calls that a layer makes, in order. They lead from stand-ins for its inputs to its outputs."""

    inputs: list[keras.KerasTensor]
    nodes: list[Any]
    outputs: list[keras.KerasTensor]

    def run(self, tensors: Sequence[Any], training: bool) -> list[Any]:
        """Runs the calls on other tensors, as a functional model would."""
        values = {id(t): v for t, v in zip(self.inputs, tensors, strict=True)}
        for node in self.nodes:
            args, kwargs = tree.map_structure(lambda v: values.get(id(v), v), internals.call_arguments(node))
            if isinstance(node.operation, keras.Layer) and "training" in _parameters(node.operation):
                kwargs = {**kwargs, "training": training}
            found = tree.flatten(node.operation(*args, **kwargs))
            values.update((id(t), v) for t, v in zip(node.outputs, found, strict=True))
        return [values[id(t)] for t in self.outputs]

    def structure(self) -> tuple:
        """Returns the classes of the called operations, and how tensors connect them."""
        number = {id(t): i for i, t in enumerate(self.inputs)}
        calls = []
        for node in self.nodes:
            calls.append((type(node.operation), *(number[id(t)] for t in tree.flatten(node.input_tensors))))
            for tensor in node.outputs:
                number[id(tensor)] = len(number)
        return (*calls, *(number[id(t)] for t in self.outputs))


INERT = "it does nothing, except in training"


def look_inside(layer: keras.Layer, args: tuple, kwargs: dict) -> Inside | str:
    """Lists the calls that a layer makes for these arguments, or says why they cannot replace the layer.

    The call is observed. If it does more than compute its outputs, that is a reason. Another reason is a layer that
    works differently in training. But if it owns no weights and otherwise returns its only input, as stochastic depth
    does, the answer is `INERT`. Only the result remembers the calls. The called layers do not.
    """
    if isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        return "it is recurrent: it runs in a loop, and each step reads the result of the step before"
    fixed, kwargs = kwargs.get("training"), {k: v for k, v in kwargs.items() if k != "training"}
    parameter = _parameters(layer).get("training")
    if fixed or (parameter and parameter.default is True):
        return "it is called with training=True unless the caller says otherwise"
    with undone() as journal:
        return _listed_alike(layer, args, kwargs, parameter is not None, journal)


def _listed_alike(layer: keras.Layer, args: tuple, kwargs: dict, has_training: bool, journal: Journal) -> Inside | str:
    """Lists the calls of a layer several times, to see that they are the same each time, in training too."""
    listed: list[Inside] = []
    for training in (None, False, True) if has_training else (None, None):
        try:
            inside = _run(layer, args, kwargs, {"training": training} if has_training else {}, journal)
            reason = _why_more(layer, inside, training, has_training)
        except SideEffect as effect:
            reason = str(effect)
        except Exception as error:  # whatever the layer's own code raises on symbolic inputs
            reason = (
                f"what it runs cannot be listed, because its call does not accept symbolic inputs ({_message(error)})"
            )
        if not reason and listed and signature(inside) != signature(listed[0]):
            reason = "it does something else in training" if training else "it does not run the same each time"
        if reason:
            nothing = training and not layer.weights and not listed[0].nodes and len(listed[0].inputs) == 1
            return INERT if nothing else reason
        listed.append(inside)
    return listed[0]


def _message(error: Exception) -> str:
    if "None" in str(error).partition("\n")[0]:
        return "it computes with a size that is not known in advance, such as that of the batch"
    return first_line(error)


def _run(layer: keras.Layer, args: tuple, kwargs: dict, extra: dict, journal: Journal) -> Inside:
    inputs = []

    def stand_in(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        floating = keras.backend.is_float_dtype(value.dtype) and layer.autocast
        inputs.append(keras.KerasTensor(value.shape, layer.compute_dtype if floating else value.dtype))
        return inputs[-1]

    args, kwargs = tree.map_structure(stand_in, (args, kwargs))
    result, nodes = listed(lambda: observed(layer, lambda: layer.call(*args, **kwargs, **extra)), inputs, journal)
    outputs = tree.flatten(result)
    if not all(isinstance(t, keras.KerasTensor) for t in outputs):
        raise TypeError("an output is not a tensor")
    return Inside(inputs, nodes, outputs)


def _why_more(layer: keras.Layer, inside: Inside, training: bool | None, has_training: bool) -> str | None:
    """Returns what a layer does beyond its calls, or None."""
    if layer.activity_regularizer is not None:
        return "it has an activity regularizer"
    if type(layer).__call__ is not keras.Layer.__call__:
        return "it overrides __call__"
    layers = [n.operation for n in inside.nodes if isinstance(n.operation, keras.Layer)]
    if reason := _why_not_theirs(layer, layers):
        return reason
    for node in inside.nodes:
        name = type(node.operation).__name__
        if unknown_settings(node.operation) not in ([], [("newshape", 0)]):
            return f"{name} in it depends on a size that is not known"
        args, kwargs = internals.call_arguments(node)
        values = tree.flatten((args, kwargs))
        if any(keras.ops.is_tensor(v) or isinstance(v, keras.Variable | tf.Variable) for v in values):
            return "it computes with a tensor that is not among its inputs"
        settings = (
            [] if isinstance(node.operation, keras.Layer) else tree.flatten(list(_settings(node.operation).values()))
        )
        if any(callable(v) and not isinstance(v, type) for v in [*values, *settings]):
            return f"{name} in it runs a Python function, which may do anything"
        if "training" in kwargs and not _follows(node.operation, kwargs["training"], training, has_training):
            return f"it calls a layer with training={kwargs['training']} at all times"
    return None


def _follows(operation: Any, given: bool | None, training: bool | None, has_training: bool) -> bool:
    """Returns whether an inner layer may be in training whenever the block is. Doubtful cases are compared later.

    Keras lists the default of an argument as if it had been passed.
    """
    if given is None or (has_training and given == training) or given is _parameters(operation)["training"].default:
        return True
    return has_training and training is None and not given


def _why_not_theirs(layer: keras.Layer, layers: list[keras.Layer]) -> str | None:
    """Returns how the weights of a layer differ from those of the layers that it calls, or None."""
    called = {id(w) for inner in layers for w in inner.weights}
    own = {id(w) for w in layer.weights}
    if own - called:
        return "it owns weights that belong to no layer that it calls"
    if called - own:
        return "it calls a layer that is not its own"
    if {id(w) for inner in layers for w in inner.trainable_weights} != {id(w) for w in layer.trainable_weights}:
        return "it does not train the same weights as the layers that it calls"
    return None


def _settings(operation: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(operation).items() if k != "name" and not k.startswith("_")}


def unknown_settings(operation: Any) -> list[tuple[str, int]]:
    """Returns the (setting, index) pairs of a raw operation where a size is unknown."""
    settings = {} if isinstance(operation, keras.Layer) else _settings(operation)
    shapes = {k: v for k, v in settings.items() if isinstance(v, list | tuple)}
    return [(k, i) for k, shape in shapes.items() for i, size in enumerate(shape) if size is None]


def _parameters(layer: keras.Layer) -> Any:
    return inspect.signature(layer.call).parameters


def signature(inside: Inside) -> list[tuple]:
    """Returns the calls as values that can be compared: operations, and arguments with numbers for tensors."""
    number = {id(t): i for i, t in enumerate(inside.inputs)}

    def comparable(value: Any) -> str:
        if isinstance(value, keras.KerasTensor):
            return f"tensor {number[id(value)]}"
        return value.tobytes().hex() if isinstance(value, np.ndarray) else repr(value)

    found = []
    for node in inside.nodes:
        args, kwargs = internals.call_arguments(node)
        kwargs = {k: v for k, v in kwargs.items() if k != "training"}
        found.append((_identity(node.operation), tree.map_structure(comparable, (args, kwargs))))
        for tensor in node.outputs:
            number[id(tensor)] = len(number)
    return [*found, tuple(number[id(t)] for t in inside.outputs)]


def _identity(operation: Any) -> Any:
    if isinstance(operation, keras.Layer):
        if operation.weights or not saveable(operation):
            return id(operation)
        # A layer without weights may have been made in the call.
        return type(operation).__name__, repr({k: v for k, v in operation.get_config().items() if k != "name"})
    return type(operation).__name__, {k: repr(v) for k, v in _settings(operation).items()}


def leave_batch_open(operation: Any, shape: tuple) -> bool:
    """Changes the target of a reshape from (batch size, ...) to (-1, ...): symbolic inputs do not have a batch size.

    Returns whether the new target is unambiguous.
    """
    sample, target = shape[1:], operation.newshape[1:]
    if -1 in target and None not in sample:
        rest = math.prod(size for size in target if size != -1)
        internals.write(operation, ("newshape", 1 + target.index(-1)), math.prod(sample) // rest)
    internals.write(operation, ("newshape", 0), -1)
    return operation.newshape.count(-1) == 1

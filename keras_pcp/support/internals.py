"""The only module that uses private attributes of Keras. The table lists each one and the reason.

| private name                                   | needed to                                                    |
| ---------------------------------------------- | ------------------------------------------------------------ |
| `Functional._nodes_by_depth`, `Sequential._functional` | walk a model's calls in execution order              |
| `Node.arguments` (`args`, `kwargs`, `_flat_arguments`) | read a call's arguments; rewrite a width among them  |
| `Operation._inbound_nodes`, `_outbound_nodes`, `KerasTensor._keras_history` | find calls, list them, take them back |
| `Layer._flatten_layers`                        | find the models that use a layer, and layers in layers        |
| `Layer._trainable`                             | freeze a model alone, not the layers that it shares           |
| `Operation._auto_config`                       | keep the saved config of a raw operation in step             |
| `Layer._build_shapes_dict`, `InputLayer._batch_shape` | keep what is saved about a layer's build in step      |
| `Reshape._resolved_target_shape`               | Keras 3.8 keeps the target shape twice                        |
| `Tensor._keras_mask`                           | give a loss the mask of an output that was computed elsewhere |
| `Trainer._compute_loss`                        | call a custom `compute_loss` that has no argument `training`  |
| `Metric._direction`                            | know whether higher is better                                 |
| `KerasTensor._shape`                           | keep the graph's own shapes in step                          |
| `Variable._shape`, `Variable._initialize`      | give a variable a value of another shape                     |
| `Variable._value`, `Variable._initializer`     | give a variable its first value in a copy, or its old one back |
| `tf.__internal__.FuncGraph`                      | run a layer's own code without effect, and list what it did  |
| `Layer._losses`                                | notice a loss that is added in a call                        |
| `Optimizer._trainable_variables`, `_variables`, `_var_key` | find slots; keep what is stored under a variable's key |
| `keras.src.backend.common.global_state`        | leave no half-initialized variables behind                   |
| `keras.src.backend.AutocastScope`              | read a weight in its own precision                           |
| `sys._current_frames`                          | see whether a training loop is still running                 |

`tests/support/test_internals.py` is the contract: it fails with a Keras version in which one of these changed its meaning.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from keras.src.backend import AutocastScope
from keras.src.backend.common import global_state

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.support.changes import Journal, temporarily
from keras_pcp.support.containers import replaced_at
from keras_pcp.support.living import living

_NOT_SLOTS = {"_variables", "_trainable_variables", "_non_trainable_variables"}


def functional_of(model: keras.Model) -> keras.Model | None:
    """Returns the functional graph that `model` runs, or None if it has none."""
    if isinstance(model, keras.Sequential):
        return model._functional if type(model).call is keras.Sequential.call else None
    if hasattr(model, "_nodes_by_depth") and type(model).call is _functional_class().call:
        return model
    return None


@cache
def _functional_class() -> type[keras.Model]:
    x = keras.Input((1,))
    return type(keras.Model(x, keras.layers.Identity()(x)))


def nodes(functional: keras.Model) -> list[Any]:
    """Returns the nodes (calls) of a functional model in execution order, without its input layers."""
    by_depth = functional._nodes_by_depth
    return [n for depth in sorted(by_depth, reverse=True) for n in by_depth[depth] if n.operation and not n.is_input]


def recorded(function: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Runs a function in a separate graph, without effect on variables.

    Returns:
        The result of the function, and the types of the stateful operations that it ran, except reads of variables. Calls on
        KerasTensors are not included: Keras runs those in graphs of their own.
    """
    graph = tf.__internal__.FuncGraph("keras_pcp")
    with graph.as_default():
        result = function()
    reads = ("Placeholder", "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarHandleOp")
    return result, [o.type for o in graph.get_operations() if o.op_def.is_stateful and o.type not in reads]


def keras_attributes() -> frozenset[str]:
    """Returns the attributes that Keras gives every layer and changes in a call, except losses."""
    if not _ATTRIBUTES:
        layer = keras.layers.Identity()
        layer(keras.Input((1,)))
        _ATTRIBUTES.append(frozenset(vars(layer)) - {"_losses"})
    return _ATTRIBUTES[0]


_ATTRIBUTES: list[frozenset[str]] = []


def node_of(tensor: keras.KerasTensor) -> Any:
    """Returns the node that made a tensor, or None if it has no history."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


def producing_operation(tensor: keras.KerasTensor) -> Any:
    """Returns the operation whose output a tensor is, or None if it has no history."""
    history = getattr(tensor, "_keras_history", None)
    return None if history is None else history.operation


def remembered(operation: Any) -> tuple[list[Any], list[Any]]:
    """Returns the lists in which an operation keeps the calls of it, and those on what it gave."""
    return operation._inbound_nodes, operation._outbound_nodes


def saved_by_structure(model: keras.Model) -> bool:
    """Returns whether a model is saved as the graph of its layers, not as the arguments of its constructor."""
    if isinstance(model, keras.Sequential):
        return type(model).get_config is keras.Sequential.get_config
    base, cls = _functional_class(), type(model)
    arguments = inspect.getfullargspec(cls.__init__)
    alike = arguments.args[1:] == inspect.getfullargspec(base.__init__).args[1:]
    passed_on = bool(arguments.varargs and arguments.varkw and not arguments.args[1:] and not arguments.kwonlyargs)
    return (
        cls.get_config is base.get_config
        and cls.from_config.__func__ is base.from_config.__func__
        and (alike or passed_on)
    )


def own_methods(model: keras.Model, names: Iterable[str]) -> list[str]:
    """Returns which of some methods the class of a model defines, or a parent class outside Keras."""
    own = [cls for cls in type(model).__mro__ if not cls.__module__.startswith("keras.")]
    return sorted(name for name in names if any(name in vars(cls) for cls in own))


def call_arguments(node: Any) -> tuple[tuple, dict]:
    """Returns the positional and keyword arguments of a call, KerasTensors included."""
    return node.arguments.args, node.arguments.kwargs


def mask_of(tensor: Any) -> Any:
    """Returns the mask of a model's output, or None. It says which positions losses and metrics use."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(value: Any, mask: Any) -> Any:
    """Returns a value as a tensor that carries a mask."""
    tensor = keras.ops.convert_to_tensor(value)
    if mask is not None:
        tensor._keras_mask = keras.ops.convert_to_tensor(mask)
    return tensor


def loss_of(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Returns the compiled loss of some outputs, outside training. A custom `compute_loss` need not accept `training`."""
    return model._compute_loss(x, y, y_pred, sample_weight, training=False)


def direction_of(metric: keras.metrics.Metric) -> str | None:
    """Returns "up" if higher is better for a Keras metric, "down" if lower is better, None if it does not say."""
    return getattr(metric, "_direction", None)


def write(owner: Any, path: tuple, value: int, journal: Journal | None = None) -> None:
    """Replaces one integer in an attribute of an operation, and in its saved config.

    `path` starts with the attribute's name. Sequence indices, or the names `start` and `stop` of a slice, follow.
    """
    journal, name, rest = journal or Journal(), path[0], path[1:]
    journal.set(owner, name, replaced_at(getattr(owner, name), rest, value))
    config = getattr(owner, "_auto_config", None)
    if config is not None and name in config.config:
        journal.update(config.config, {name: replaced_at(config.config[name], rest, value)})


def write_argument(node: Any, path: tuple, value: int, journal: Journal | None = None) -> None:
    """Replaces one integer among the arguments of a call; `path` starts with `"args"` or `"kwargs"`."""
    journal, arguments = journal or Journal(), node.arguments
    journal.remember(arguments, "_flat_arguments")
    journal.set(arguments, path[0], replaced_at(getattr(arguments, path[0]), path[1:], value))
    arguments._flat_arguments = tree.flatten((arguments.args, arguments.kwargs))


def refresh_layer(layer: keras.Layer, node: Any, journal: Journal) -> None:
    """Updates input specs and recorded build shapes of a layer to the input shapes of its first call."""
    if isinstance(layer, keras.Model):
        specs = []
    else:
        specs = [s for s in tree.flatten(layer.input_spec) if s is not None]
    for spec, tensor in zip(specs, tree.flatten(node.input_tensors), strict=False):
        if spec.shape is not None:
            journal.set(spec, "shape", tuple(old and new for old, new in zip(spec.shape, tensor.shape, strict=True)))
        journal.set(spec, "axes", {axis: tensor.shape[axis] for axis in spec.axes or {}})
    if hasattr(layer, "_resolved_target_shape"):
        resolved = tuple(-1 if d is None else d for d in node.outputs[0].shape[1:])
        journal.set(layer, "_resolved_target_shape", resolved)
    recorded = layer._build_shapes_dict
    if not recorded:
        return
    args, kwargs = call_arguments(node)
    signature = inspect.signature(layer.call)
    kwargs = {k: v for k, v in kwargs.items() if k in signature.parameters}
    bound = signature.bind_partial(*args, **kwargs).arguments
    first = next(iter(bound.values()))
    by_name = len(recorded) > 1
    for key, old in list(recorded.items()):
        tensors = bound.get(key.removesuffix("_shape")) if by_name else first
        if old is not None and tensors is not None:
            new = tree.map_structure(lambda t: t.shape, tensors)
            journal.update(recorded, {key: _same_style(old, new)})


def _same_style(old: Any, new: Any) -> Any:
    """Converts shapes `new` to the container types of the recorded shapes `old` (a list stays a list)."""
    if isinstance(new, tuple) and all(d is None or isinstance(d, int) for d in new):
        return list(new) if isinstance(old, list) else new
    return type(old)(new) if isinstance(old, list | tuple) else new


def refresh_input_layer(layer: keras.layers.InputLayer, journal: Journal) -> None:
    """Updates the saved shape of an input layer to that of its tensor."""
    journal.set(layer, "_batch_shape", tuple(layer.output.shape))


def set_size(tensor: keras.KerasTensor, axis: int, size: int, journal: Journal) -> None:
    """Changes the length of one axis of a KerasTensor."""
    journal.set(tensor, "_shape", (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]))


def calls_outside(operations: list[Any], inside: set[int]) -> list[Any]:
    """Returns the nodes that call one of `operations`, in order of creation, whose `id` is not in `inside`."""
    return [n for op in operations for n in op._inbound_nodes if id(n) not in inside and not n.is_input]


def as_stored(weight: keras.Variable) -> Any:
    """Returns the value of a weight in its own precision, also within a layer of mixed precision."""
    with AutocastScope(None):
        return weight.value


def stateless(
    values: Iterable[tuple[keras.Variable, Any]] = (), collect_losses: bool = False
) -> AbstractContextManager[keras.StatelessScope]:
    """Returns a `keras.StatelessScope` that ends cleanly, whatever interrupts it.

    At the end of the scope, Keras initializes the variables that were made in it. If that fails, Keras tries again at the
    end of each later scope, and fails each time. If it is interrupted before, all later assignments go to the scope.
    """

    def enter(journal: Journal) -> keras.StatelessScope:
        with AutocastScope(None):  # else the values would be cast here
            scope = keras.StatelessScope(values, collect_losses)

        def leave() -> None:
            try:
                scope.__exit__(None, None, None)
            except BaseException:
                global_state.set_global_attribute("uninitialized_variables", [])
                raise

        scope.original_scope = global_state.get_global_attribute("stateless_scope")
        journal.note(leave)
        return scope.__enter__()

    return temporarily(enter)


def set_first_value(variable: keras.Variable, value: np.ndarray) -> None:
    """Sets the value that a variable made in a `keras.StatelessScope` takes at its end; resizes one that has a value."""
    if variable._value is not None:
        resize_variable(variable, value, Journal())
    else:
        variable._shape = tuple(value.shape)
        variable._initializer = lambda shape, dtype=None: value


def resize_variable(variable: keras.Variable, value: np.ndarray, journal: Journal) -> None:
    """Assigns a value of another shape to a variable; the Python object stays the same."""
    journal.remember(variable, "_value")
    journal.set(variable, "_shape", tuple(value.shape))
    variable._initialize(value)


def array_of(variable: keras.Variable) -> np.ndarray:
    """Returns the value of a variable, if possible without a copy. Do not write to it."""
    return np.asarray(tf.convert_to_tensor(variable.value))


def slots(optimizer: keras.Optimizer, variables: list[keras.Variable]) -> Iterator[tuple[int, str, keras.Variable]]:
    """Yields (index in `variables`, name of the slot, slot variable) for every slot of a built optimizer.

    Slots of an optimizer inside it are not included.

    Raises:
        UnsupportedModelError: the optimizer keeps arrays that do not correspond to one model variable each.
    """
    index = {id(v): i for i, v in enumerate(variables)}
    seen, owners = set(), optimizer._trainable_variables
    for name, value in vars(optimizer).items():
        if name in _NOT_SLOTS or not isinstance(value, list) or len(value) != len(owners):
            continue
        for owner, slot in zip(owners, value, strict=True):
            if isinstance(slot, keras.Variable):
                seen.add(id(slot))
                if id(owner) in index:
                    yield index[id(owner)], name, slot
    strange = [v.path for v in optimizer._variables if len(v.shape) and id(v) not in seen]
    if strange:
        raise UnsupportedModelError(
            f"optimizer {type(optimizer).__name__} keeps {strange[:3]}, which do not correspond to one model variable "
            "each, so they cannot be carried over to a smaller model. Use an optimizer that ships with Keras."
        )


def variable_keys(optimizers: list[keras.Optimizer]) -> list[tuple[keras.Optimizer, dict[Any, keras.Variable]]]:
    """Returns the keys under which optimizers know their variables; take them before resizing, for `rekey`."""
    return [(o, {o._var_key(v): v for v in o._trainable_variables}) for o in optimizers]


def rekey(keys: list[tuple[keras.Optimizer, dict[Any, keras.Variable]]], journal: Journal) -> None:
    """Replaces the keys of resized variables in optimizers, wherever they keep such keys.

    That is the index of the slots, and the set of variables without weight decay.
    """
    for optimizer, known in keys:
        new = {old: optimizer._var_key(variable) for old, variable in known.items()}
        for name, value in list(vars(optimizer).items()):
            if isinstance(value, dict) and not new.keys().isdisjoint(value):
                journal.set(optimizer, name, {new.get(k, k): v for k, v in value.items()})
            elif isinstance(value, set) and not new.keys().isdisjoint(value):
                journal.set(optimizer, name, {new.get(k, k) for k in value})


def users(operations: list[Any], variables: list[keras.Variable]) -> tuple[list[keras.Model], list[keras.Optimizer]]:
    """Returns every living model that uses one of `operations`, and every living built optimizer of one of `variables`.

    If one optimizer wraps another, both are included.
    """
    touched, held = {id(op) for op in operations}, {id(v) for v in variables}
    found = living((keras.Model, keras.Optimizer))
    models = [m for m in found if isinstance(m, keras.Model) and touched & {id(layer) for layer in m._flatten_layers()}]
    built = [o for o in found if isinstance(o, keras.Optimizer) and getattr(o, "built", False)]
    return models, [o for o in built if held & {id(v) for v in o._trainable_variables}]


def freeze(model: keras.Model) -> None:
    """Lets a model train none of its weights; its layers, which it may share with others, are left as they are."""
    model._trainable = False


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns all layers in a model, including layers inside other layers."""
    return list(model._flatten_layers(include_self=False))


def forget_traces(models: list[keras.Model], journal: Journal) -> None:
    """Drops the compiled train, test and predict functions of some models.

    A traced function holds the variables that it was traced with, so it would continue with the old weights.
    """
    for model in models:
        if getattr(model, "train_function", None) is not None:
            journal.remember(model, "train_function")
            model.make_train_function(force=True)
        journal.set(model, "test_function", None)
        journal.set(model, "predict_function", None)


def in_training(callback: keras.callbacks.Callback) -> bool:
    """Returns whether a training loop that calls `callback` is running, in any thread.

    It is running if its list of callbacks is among the local variables of a function that has not returned.
    """
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            for value in list(frame.f_locals.values()):
                if issubclass(type(value), keras.callbacks.CallbackList) and any(
                    c is callback for c in value.callbacks
                ):
                    return True
            frame = frame.f_back
    return False


def list_that_calls(callback: keras.callbacks.Callback) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of the list that is calling `callback` at the moment, itself included; none if none is."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and any(c is callback for c in caller.callbacks):
            return list(caller.callbacks)
        frame = frame.f_back
    return []

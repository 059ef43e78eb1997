"""Shrinks a model in place, in training or not: every object stays, its values and widths are replaced.

Kept valid: the model, its layers and variables, nested models, sub-models that share layers, the optimizer with its
slots. Everything is computed before anything is changed, and a failure while changing undoes what was done.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np

from keras_pcp import internals
from keras_pcp.blocks import Opened, check_nothing_lost, open_blocks
from keras_pcp.channels import ChannelGraph, Selection, Width, check_selection
from keras_pcp.errors import UnsupportedModelError
from keras_pcp.following import check_blocks_follow, half_of, widths_in_place
from keras_pcp.graph import build_graph, check_fits
from keras_pcp.narrowing import weight_masks
from keras_pcp.trace import Trace, trace

# Axis of the variable that a slot lacks, for optimizers that keep factored statistics.
_DROPPED_AXIS = {"_r": -1, "_c": -2}
_STRATEGIES = ("_DefaultDistributionStrategy", "MirroredStrategy", "OneDeviceStrategy")


def shrink(model: keras.Model, graph: ChannelGraph, selection: Selection) -> None:
    """Removes channels from `model` in place; the same Python objects go on, smaller.

    Optimizer slots are sliced with their weights, and compiled train, test and predict functions of every model that
    shares a layer are dropped, to be traced anew. A `tf.function` of your own around the model has to be made anew.

    Args:
        model: a Functional or Sequential model, compiled or not, also in the middle of `fit`.
        graph: `build_graph(model)` of the model as it is now.
        selection: channels to keep.

    Raises:
        InvalidArgumentError: graph or selection does not fit the model.
        UnsupportedModelError: the optimizer or the distribution strategy is not supported, or layers are hidden in blocks
            (see `inline_blocks`); nothing has changed then.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3, name="hidden")(x)))
        >>> graph = keras_pcp.build_graph(model)
        >>> keras_pcp.shrink(model, graph, keras_pcp.Selection({"hidden": np.array([True, False, True])}))
        >>> model.get_layer("hidden").units, model.count_params()  # 4 * 2 + 2 + 2 * 2 + 2
        (2, 16)
    """
    check_selection(graph, selection)
    _check_strategy(model)
    if not selection.removed():
        return
    check_fits(model, graph)
    opened = open_blocks(model) if graph.blocks else Opened(model, (), {}, frozenset())
    _check_plain(model, opened.hiding)
    check_blocks_follow(opened, graph, selection)
    traced = trace(model)
    models = internals.models_using([model, *traced.operations])
    optimizers = internals.built_optimizers(models)
    masks, variables = weight_masks(graph, selection), model.weights
    resized = [(variables[i], sliced(internals.array_of(variables[i]), masks[i])) for i in masks]
    for optimizer in optimizers:
        resized += _sliced_slots(optimizer, variables, masks)
    keys = internals.variable_keys(optimizers)
    journal: list[Callable[[], None]] = []
    try:
        with strategy_scope(model):
            for variable, value in resized:
                journal.append(internals.resize_variable(variable, value))
        rewrite_widths(traced, widths_in_place(traced, opened, graph), selection, journal)
        internals.rekey(keys)
        internals.forget_traces(models)
    except BaseException:
        for undo in reversed(journal):
            undo()
        internals.rekey(keys)
        raise


def check_live(model: keras.Model) -> None:
    """Raises UnsupportedModelError if the model, its distribution strategy or its optimizer cannot follow a shrink."""
    _check_strategy(model)
    opened = open_blocks(model)
    _check_plain(model, opened.hiding)
    if opened.staying:
        graph = build_graph(model, on_unknown="freeze")
        check_blocks_follow(opened, graph, half_of(graph))
    variables = model.weights
    for optimizer in internals.built_optimizers([model]):
        _sliced_slots(optimizer, variables, {i: {} for i in range(len(variables))})


def _check_plain(model: keras.Model, blocks: Sequence[str]) -> None:
    if blocks:
        if not internals.saved_by_structure(model) or isinstance(model, keras.Sequential):
            check_nothing_lost(model)
        raise UnsupportedModelError(
            f"model {model.name!r} hides layers in blocks whose config cannot tell their pruned widths, such as "
            f"{', '.join(map(repr, blocks[:3]))}, so a file of the pruned model could not be loaded. Open them first: "
            "model = keras_pcp.inline_blocks(model), then compile and train that"
        )


def _check_strategy(model: keras.Model) -> None:
    strategy = getattr(model, "distribute_strategy", None)
    name = type(strategy).__name__
    if strategy is not None and name not in _STRATEGIES:
        raise UnsupportedModelError(
            f"model {model.name!r} is distributed by {name}, which keras_pcp does not support; "
            "supported are a single device and tf.distribute.MirroredStrategy"
        )


def strategy_scope(model: keras.Model) -> AbstractContextManager[Any]:
    """Returns the scope in which the model's variables have to be made."""
    strategy = getattr(model, "distribute_strategy", None)
    return nullcontext() if strategy is None else strategy.scope()


def sliced(value: np.ndarray, masks: dict[int, np.ndarray]) -> np.ndarray:
    """Returns the part of an array that the masks keep, axis by axis."""
    for axis, mask in masks.items():
        value = np.take(value, np.flatnonzero(mask), axis)
    return value


def _sliced_slots(
    optimizer: keras.Optimizer, variables: list[keras.Variable], masks: dict[int, dict]
) -> list[tuple[keras.Variable, np.ndarray]]:
    result = []
    for index, name, slot in internals.slots(optimizer, variables):
        if index in masks and len(slot.shape) > 0:
            own = _slot_masks(tuple(variables[index].shape), tuple(slot.shape), name, masks[index])
            if own is None:
                raise UnsupportedModelError(
                    f"optimizer slot {slot.path} of shape {tuple(slot.shape)} does not follow the shape "
                    f"{tuple(variables[index].shape)} of {variables[index].path}, so it cannot be carried over; "
                    "use an optimizer that ships with Keras"
                )
            result.append((slot, sliced(internals.array_of(slot), own)))
    return result


def _slot_masks(shape: tuple, slot_shape: tuple, name: str, masks: dict) -> dict[int, np.ndarray] | None:
    """Returns the masks by the slot's own axes, or None if its shape does not follow the variable's."""
    if slot_shape == shape:
        return masks
    without = [a for a in range(len(shape)) if shape[:a] + shape[a + 1 :] == slot_shape]
    if len(without) > 1:
        without = [_DROPPED_AXIS[name] % len(shape)] if name in _DROPPED_AXIS else []
    if not without:
        return {} if slot_shape == (1,) else None
    return {a - (a > without[0]): m for a, m in masks.items() if a != without[0]}


def rewrite_widths(traced: Trace, graph: ChannelGraph, selection: Selection, journal: list | None = None) -> None:
    """Writes every changed width, then brings what Keras derives from shapes in step; `journal` gets the way back."""
    journal = [] if journal is None else journal
    changed = [(w, w.extent.after(selection.keep)) for w in graph.widths]
    changed = [(w, new) for w, new in changed if new != w.extent.size]
    tensor_widths = {w.index: (w, new) for w, new in changed if w.owner == "tensor"}
    for width, new in changed:
        _write(width, new, traced, journal)
    own = {id(tensor) for tensor in traced.tensors}
    for call in traced.calls:
        if call.node is not None and getattr(call.operation, "weights", None):
            for node in internals.calls_outside([call.operation], {id(call.node)}):
                _follow_call(node, call, tensor_widths, own, journal)
    _refresh_layers(traced)
    journal.insert(0, lambda: _refresh_layers(traced))


def _write(width: Width, new: int, traced: Trace, journal: list) -> None:
    def put(value: int) -> None:
        if width.owner == "operation":
            internals.write(traced.operations[width.index], width.path, value)
        elif width.owner == "argument":
            internals.write_argument(traced.calls[width.index].node, width.path, value)
        else:
            internals.set_size(traced.tensors[width.index], width.path[0], value)

    journal.append(lambda: put(width.extent.size))
    put(new)


def _follow_call(node: Any, call: Any, widths: dict[int, tuple[Width, int]], own: set[int], journal: list) -> None:
    """Gives the tensors of another call of the same layer, in a model of the user's, the widths of the known call.

    `own` are the tensors of the model itself, which have widths of their own.
    """
    pairs = [*zip(call.inputs, node.input_tensors, strict=False), *zip(call.outputs, node.outputs, strict=False)]
    for known, tensor in pairs:
        if known not in widths or id(tensor) in own:
            continue
        width, new = widths[known]
        axis, old = width.path[0], width.extent.size
        if axis < len(tensor.shape) and tensor.shape[axis] == old:
            journal.append(lambda tensor=tensor, axis=axis, old=old: internals.set_size(tensor, axis, old))
            internals.set_size(tensor, axis, new)
            source = internals.producing_operation(tensor)
            if isinstance(source, keras.layers.InputLayer):
                internals.refresh_input_layer(source)


def _refresh_layers(traced: Trace) -> None:
    seen = set()
    for operation in traced.operations:
        if isinstance(operation, keras.layers.InputLayer):
            internals.refresh_input_layer(operation)
    for call in traced.calls:
        if isinstance(call.operation, keras.Layer) and id(call.operation) not in seen:
            seen.add(id(call.operation))
            internals.refresh_layer(call.operation, call.node)

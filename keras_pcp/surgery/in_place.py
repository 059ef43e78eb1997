"""Shrinks a model in place, in training or not: every object stays, and its values and widths are replaced.

These stay valid: the model, its layers and variables, nested models, sub-models that share layers, and the optimizer with
its slots. Everything is computed before anything is changed. A failure during the changes undoes them.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.blocks import check_nothing_lost
from keras_pcp.graph.build import check_fits, graph_of
from keras_pcp.graph.channel_graph import ChannelGraph, check_selection
from keras_pcp.graph.channels import Width
from keras_pcp.graph.program import program_of
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.trace import Trace, trace
from keras_pcp.graph.weight_masks import weight_masks
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal, all_or_nothing
from keras_pcp.surgery.following import check_blocks_follow, half_of, widths_in_place

# Axis of the variable that a slot lacks, for optimizers that keep factored statistics.
_DROPPED_AXIS = {"_r": -1, "_c": -2}
_STRATEGIES = ("_DefaultDistributionStrategy", "MirroredStrategy", "OneDeviceStrategy")


def shrink(model: keras.Model, graph: ChannelGraph, selection: Selection) -> None:
    """Removes channels from `model` in place; the Python objects stay the same, but get smaller.

    Slots of every optimizer that holds one of the weights are sliced, too. The compiled train, test and predict functions of
    every model that shares a layer are dropped and will be traced again. If you wrapped the model in your own `tf.function`,
    re-create it. If anything goes wrong, nothing is changed; Ctrl-C waits while the model is written to.

    Args:
        model: a Functional or Sequential model, compiled or not; `fit` may be running.
        graph: `build_graph(model)` of the model as it is now.
        selection: channels to keep.

    Raises:
        InvalidArgumentError: graph or selection does not fit the model.
        UnsupportedModelError: an optimizer or the distribution strategy is not supported, or layers are hidden in blocks
            (see `inline_blocks`).

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3, name="hidden")(x)))
        >>> graph = keras_pcp.build_graph(model)
        >>> keras_pcp.shrink(model, graph, keras_pcp.Selection({"hidden": np.array([True, False, True])}))
        >>> model.get_layer("hidden").units, model.count_params()  # 4 * 2 + 2 + 2 * 2 + 2
        (2, 16)
    """
    all_or_nothing(shrinking(model, graph, selection))


def shrinking(
    model: keras.Model, graph: ChannelGraph, selection: Selection, values: Sequence[np.ndarray | None] | None = None
) -> Callable[[Journal], None]:
    """Computes everything that `shrink` will write, and returns a function that writes it; `values` are new weights."""
    check_selection(graph, selection)
    program = check_fits(model, graph)
    _check_strategy(model)
    if not selection.removed():
        return lambda journal: None
    _check_plain(model, program.opened.hiding)
    check_blocks_follow(program, graph, selection)
    traced = trace(model)
    masks, variables = weight_masks(graph, selection), model.weights
    if values is None:
        new = {i: sliced(internals.array_of(variables[i]), axes) for i, axes in masks.items()}
    else:
        new = {i: value for i, value in enumerate(values) if value is not None}
    resized = [(variables[i], new[i]) for i in masks]
    kept = [(variables[i], value) for i, value in new.items() if i not in masks]
    models, optimizers, slots = _followers(model, traced.operations, masks)
    keys, widths = internals.variable_keys(optimizers), widths_in_place(traced, program, graph)

    def write(journal: Journal) -> None:
        with strategy_scope(model):
            for variable, value in [*resized, *slots]:
                internals.resize_variable(variable, value, journal)
        journal.assign(kept)
        rewrite_widths(traced, widths, selection, journal)
        internals.rekey(keys, journal)
        internals.forget_traces(models, journal)

    return write


def check_live(model: keras.Model) -> None:
    """Raises UnsupportedModelError if the model, its distribution strategy or an optimizer cannot follow a shrink."""
    _check_strategy(model)
    program = program_of(model)
    _check_plain(model, program.opened.hiding)
    if program.opened.staying:
        graph = graph_of(program, "freeze")
        check_blocks_follow(program, graph, half_of(graph))
    _followers(model, [], {i: {} for i in range(len(model.weights))})


def _followers(
    model: keras.Model, operations: Sequence[Any], masks: dict[int, dict]
) -> tuple[list[keras.Model], list[keras.Optimizer], list[tuple[keras.Variable, np.ndarray]]]:
    """Returns what has to follow: models that share layers, optimizers that hold weights, and (slot, new value)."""
    variables = model.weights

    def found():
        models, optimizers = internals.users([model, *operations], variables)
        return models, optimizers, [pair for o in optimizers for pair in _sliced_slots(o, variables, masks)]

    try:
        return found()
    except UnsupportedModelError:
        pass
    gc.collect()  # the optimizer may no longer be in use, for example after a new compile
    return found()


def _check_plain(model: keras.Model, blocks: Sequence[str]) -> None:
    if blocks:
        if not internals.saved_by_structure(model) or isinstance(model, keras.Sequential):
            check_nothing_lost(model)
        raise UnsupportedModelError(
            f"model {model.name!r} hides layers in blocks whose config does not hold pruned widths, such as "
            f"{', '.join(map(repr, blocks[:3]))}, so a file of the pruned model could not be loaded. Open them first: "
            "model = keras_pcp.inline_blocks(model), then compile and train that"
        )


def _check_strategy(model: keras.Model) -> None:
    strategy = getattr(model, "distribute_strategy", None)
    name = type(strategy).__name__
    if strategy is not None and name not in _STRATEGIES:
        raise UnsupportedModelError(
            f"model {model.name!r} is distributed by {name}, which keras_pcp does not support; "
            "use a single device or tf.distribute.MirroredStrategy"
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
                    f"{tuple(variables[index].shape)} of {variables[index].path}, so {type(optimizer).__name__} "
                    f"{optimizer.name!r} cannot be carried over; use an optimizer that ships with Keras"
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


def rewrite_widths(traced: Trace, graph: ChannelGraph, selection: Selection, journal: Journal | None = None) -> None:
    """Writes every changed width, then updates what Keras derives from shapes."""
    journal = journal or Journal()
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
    _refresh_layers(traced, journal)


def _write(width: Width, new: int, traced: Trace, journal: Journal) -> None:
    if width.owner == "operation":
        internals.write(traced.operations[width.index], width.path, new, journal)
    elif width.owner == "argument":
        internals.write_argument(traced.calls[width.index].node, width.path, new, journal)
    else:
        internals.set_size(traced.tensors[width.index], width.path[0], new, journal)


def _follow_call(node: Any, call: Any, widths: dict[int, tuple[Width, int]], own: set[int], journal: Journal) -> None:
    """Copies the widths of a call to the tensors of another call of the same layer in another model.

    `own` are the tensors of the model itself, which have their own widths.
    """
    pairs = [*zip(call.inputs, node.input_tensors, strict=False), *zip(call.outputs, node.outputs, strict=False)]
    for known, tensor in pairs:
        if known not in widths or id(tensor) in own:
            continue
        width, new = widths[known]
        axis, old = width.path[0], width.extent.size
        if axis < len(tensor.shape) and tensor.shape[axis] == old:
            internals.set_size(tensor, axis, new, journal)
            source = internals.producing_operation(tensor)
            if isinstance(source, keras.layers.InputLayer):
                internals.refresh_input_layer(source, journal)


def _refresh_layers(traced: Trace, journal: Journal) -> None:
    seen = set()
    for operation in traced.operations:
        if isinstance(operation, keras.layers.InputLayer):
            internals.refresh_input_layer(operation, journal)
    for call in traced.calls:
        if isinstance(call.operation, keras.Layer) and id(call.operation) not in seen:
            seen.add(id(call.operation))
            internals.refresh_layer(call.operation, call.node, journal)

"""Opens layers that hide other layers, so that what they hide can be analysed, pruned and saved.

A custom layer that calls other layers in its `call` is opaque: its config tells the widths with which it was made, and no
rule can know what it does. But calling `call` on KerasTensors lists the layers and operations it runs. Where that list is
all there is to the layer, the layer can be replaced by it.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp import checks, internals
from keras_pcp.rules import find_rule
from keras_pcp.trace import trace


@dataclass(frozen=True, eq=False)
class Opened:
    """A model with its blocks opened.

    Attributes:
        model: the plain model; the model itself if nothing was to be opened.
        blocks: names of the layers and nested models that were replaced by what they hide.
        closed: {`id` of a layer without a rule: why it could not be opened}.
        inert: `id`s of layers without weights that return their input as it is, except in training.
    """

    model: keras.Model
    blocks: tuple[str, ...]
    closed: Mapping[int, str]
    inert: frozenset[int]


def inline_blocks(model: keras.Model) -> keras.Model:
    """Returns a plain functional model made of the same layers, in which blocks that hide layers are opened.

    Blocks are custom layers whose `call` consists of other layers and `keras.ops`, and models that are saved by the
    arguments of their constructor (such as the backbones of KerasHub) rather than by their structure. The result computes
    the same, in training too, and shares layers and weights with `model`. It is not compiled. A block stays closed if it
    owns weights that belong to no inner layer, computes with tensors that are no inputs, does something else in training
    than its layers do, or does not accept symbolic inputs.

    Prune, train and save the plain model: the config of a block tells nothing of pruned widths, so a block that has been
    pruned inside could be saved but not loaded.

    Args:
        model: a built Functional or Sequential model.

    Returns:
        The plain model, or `model` itself if it holds no blocks.

    Raises:
        UnsupportedModelError: the model has no functional graph.

    Example:
        >>> import keras, keras_pcp
        >>> class Block(keras.layers.Layer):
        ...     def __init__(self, filters, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.conv = keras.layers.Conv2D(filters, 3, name="conv")
        ...     def build(self, input_shape):
        ...         self.conv.build(input_shape)
        ...     def call(self, x):
        ...         return keras.ops.relu(self.conv(x))
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.GlobalMaxPooling2D()(Block(16)(x))
        >>> plain = keras_pcp.inline_blocks(keras.Model(x, keras.layers.Dense(2)(y)))
        >>> [layer.__class__.__name__ for layer in plain.layers]
        ['InputLayer', 'Conv2D', 'GlobalMaxPooling2D', 'Dense']
    """
    return open_blocks(checks.model("model", model)).model


def open_blocks(model: keras.Model) -> Opened:
    """Opens every block of a model that can be opened, and tells which could not and why."""
    operations = trace(model).operations
    if not any(_to_replace(op) for op in (model, *operations)):
        return Opened(model, (), {}, frozenset())
    inliner = _Inliner({op.name: op for op in (model, *operations)})
    plain = inliner.convert(model)
    return Opened(plain, tuple(inliner.blocks), inliner.closed, frozenset(inliner.inert))


def _to_replace(operation: Any) -> bool:
    if isinstance(operation, keras.Model) and internals.functional_of(operation) is not None:
        return not internals.saved_by_structure(operation)
    return isinstance(operation, keras.Layer) and find_rule(operation) is None and not _is_input(operation)


def _is_input(operation: Any) -> bool:
    return isinstance(operation, keras.layers.InputLayer)


class _Inliner:
    """Rebuilds a graph call by call; calls that nothing has changed for are left as they are."""

    def __init__(self, names: dict[str, Any]):
        self.names = names
        self.blocks: dict[str, None] = {}
        self.closed: dict[int, str] = {}
        self.inert: set[int] = set()
        self.replaced: dict[int, tuple[Any, Any]] = {}
        self.models: dict[int, keras.Model] = {}

    def convert(self, model: keras.Model) -> keras.Model:
        """Returns a plain model for a model whose blocks can be opened."""
        functional = internals.functional_of(model)
        for node in internals.nodes(functional):
            self.replay(node)
        by_structure = internals.saved_by_structure(model)
        if by_structure and not any(id(t) in self.replaced for t in functional.outputs):
            return model
        if not by_structure:
            self.blocks[model.name] = None
        plain = keras.Model(functional.input, tree.map_structure(self.current, functional.output), name=model.name)
        if not model.trainable:
            plain.trainable = False
        return plain

    def current(self, value: Any) -> Any:
        """Returns what has taken the place of a tensor."""
        return self.replaced[id(value)][1] if id(value) in self.replaced else value

    def put(self, old: list, new: Any) -> None:
        """Lets new tensors take the place of old ones."""
        for before, after in zip(old, tree.flatten(new), strict=True):
            self.replaced[id(before)] = (before, after)

    def replay(self, node: Any, block: str | None = None) -> None:
        """Runs a call again on the new tensors, opened if it is a block."""
        operation = node.operation
        if isinstance(operation, keras.Model) and internals.functional_of(operation) is not None:
            if id(operation) not in self.models:
                self.models[id(operation)] = self.convert(operation)
            operation = self.models[id(operation)]
        args, kwargs = tree.map_structure(self.current, internals.call_arguments(node))
        # Inside a block, a layer that cannot be saved on its own is replaced by what it runs, even if it has a rule.
        stands_alone = block is None or _saveable(operation)
        if (_to_replace(operation) or not stands_alone) and self.open(node, args, kwargs):
            return
        if not stands_alone:
            raise _StaysClosed(f"its inner {type(operation).__name__} cannot be saved on its own")
        if block is not None:
            self.claim_name(operation, block)
            if _unknown_settings(operation):
                _leave_batch_open(operation, args[0])
        if operation is not node.operation or any(id(t) in self.replaced for t in tree.flatten(node.input_tensors)):
            self.put(node.outputs, operation(*args, **kwargs))

    def open(self, node: Any, args: tuple, kwargs: dict) -> bool:
        """Runs what a block runs in its place; tells whether that was possible."""
        layer = node.operation
        inside = look_inside(layer, args, kwargs)
        if inside is INERT:
            self.inert.add(id(layer))
            return False
        if isinstance(inside, str):
            self.closed[id(layer)] = inside
            return False
        given = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        actual = [
            t if t.dtype == f.dtype else keras.ops.cast(t, f.dtype) for t, f in zip(given, inside.inputs, strict=True)
        ]
        self.put(inside.inputs, actual)
        try:
            for inner in inside.nodes:
                self.replay(inner, layer.name)
        except _StaysClosed as error:
            self.closed[id(layer)] = str(error)
            return False
        self.blocks[layer.name] = None
        self.put(node.outputs, [self.current(t) for t in inside.outputs])
        return True

    def claim_name(self, operation: Any, block: str) -> None:
        """Renames an inner operation if another one of the model has its name: names are unique within a model."""
        name, number = operation.name, 1
        while self.names.setdefault(name, operation) is not operation:
            name = f"{block}_{operation.name}" if number == 1 else f"{block}_{operation.name}_{number}"
            number += 1
        operation.name = name


class _StaysClosed(Exception):
    """A block cannot be opened because of a layer in it."""


def _saveable(operation: Any) -> bool:
    if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model):
        return True
    try:
        type(operation).from_config(operation.get_config())
    except Exception:  # whatever the layer's own code raises
        return False
    return True


@dataclass(frozen=True, eq=False)
class Inside:
    """What a layer runs: its calls in order, from stand-ins for the inputs to the outputs."""

    inputs: list[keras.KerasTensor]
    nodes: list[Any]
    outputs: list[keras.KerasTensor]


INERT = "it does nothing, except in training"


def look_inside(layer: keras.Layer, args: tuple, kwargs: dict) -> Inside | str:
    """Lists what a layer runs when it is called with these arguments, or says why that is not all there is to it.

    A layer that is run in training in another way is not listed, but if it owns no weights and returns its only input
    otherwise, as stochastic depth does, the answer is `INERT`.
    """
    kwargs = {k: v for k, v in kwargs.items() if k != "training"}
    has_training = "training" in inspect.signature(layer.call).parameters
    first = None
    for training in (None, False, True) if has_training else (None,):
        try:
            inside = _run(layer, args, kwargs, {"training": training} if has_training else {})
            reason = _why_more(layer, inside, training)
        except Exception as error:  # whatever the layer's own code raises on symbolic inputs
            reason = f"its call does not accept symbolic inputs ({_first_line(error)})"
        if not reason and first is not None and _signature(inside) != _signature(first):
            reason = "it does something else in training"
        if reason:
            nothing = training and not layer.weights and not first.nodes and len(first.inputs) == 1
            return INERT if nothing else reason
        first = first or inside
    return first


def _run(layer: keras.Layer, args: tuple, kwargs: dict, extra: dict) -> Inside:
    inputs = []

    def stand_in(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        floating = keras.backend.is_float_dtype(value.dtype) and layer.autocast
        inputs.append(keras.KerasTensor(value.shape, layer.compute_dtype if floating else value.dtype))
        return inputs[-1]

    args, kwargs = tree.map_structure(stand_in, (args, kwargs))
    outputs = tree.flatten(layer.call(*args, **kwargs, **extra))
    if not all(isinstance(t, keras.KerasTensor) for t in outputs):
        raise TypeError("an output is not a tensor")
    return Inside(inputs, internals.nodes_before(outputs), outputs)


def _why_more(layer: keras.Layer, inside: Inside, training: bool | None) -> str | None:
    """Returns what a layer does beyond the calls it makes, or None."""
    if layer.activity_regularizer is not None:
        return "it has an activity regularizer"
    operations = [n.operation for n in inside.nodes]
    owned = {id(w) for op in operations if isinstance(op, keras.Layer) for w in op.weights}
    if any(id(w) not in owned for w in layer.weights):
        return "it owns weights that belong to no layer that it calls"
    for node in inside.nodes:
        if _unknown_settings(node.operation) not in ([], [("newshape", 0)]):
            return f"{type(node.operation).__name__} in it depends on a size that is not known"
        args, kwargs = internals.call_arguments(node)
        if any(keras.ops.is_tensor(v) or isinstance(v, keras.Variable) for v in tree.flatten((args, kwargs))):
            return "it computes with a tensor that is not among its inputs"
        if None not in (training, kwargs.get("training")) and kwargs["training"] != training:
            return f"it calls a layer with training={kwargs['training']} at all times"
    return None


def _unknown_settings(operation: Any) -> list[tuple[str, int]]:
    """Returns the places in the settings of a raw operation where a size is unknown."""
    settings = {} if isinstance(operation, keras.Layer) else vars(operation)
    shapes = {k: v for k, v in settings.items() if not k.startswith("_") and isinstance(v, list | tuple)}
    return [(k, i) for k, shape in shapes.items() for i, size in enumerate(shape) if size is None]


def _leave_batch_open(operation: Any, tensor: keras.KerasTensor) -> None:
    """Gives a reshape to (batch size, ...) the target (-1, ...), because symbolic inputs do not tell the batch size."""
    sample, target = tensor.shape[1:], operation.newshape[1:]
    if -1 in target and None not in sample:
        rest = math.prod(size for size in target if size != -1)
        internals.write(operation, ("newshape", 1 + target.index(-1)), math.prod(sample) // rest)
    internals.write(operation, ("newshape", 0), -1)
    if operation.newshape.count(-1) > 1:
        raise _StaysClosed("Reshape in it depends on a size that is not known")


def _signature(inside: Inside) -> list[tuple]:
    """Returns the calls as comparable values: operations, and arguments with tensors numbered."""
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
    return [*found, [number[id(t)] for t in inside.outputs]]


def _identity(operation: Any) -> Any:
    if isinstance(operation, keras.Layer):
        if operation.weights or not _saveable(operation):
            return id(operation)
        # A layer without weights may have been made in the call.
        return type(operation).__name__, repr({k: v for k, v in operation.get_config().items() if k != "name"})
    settings = {k: repr(v) for k, v in vars(operation).items() if k != "name" and not k.startswith("_")}
    return type(operation).__name__, settings


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"

"""Opens layers that hide other layers, so that the hidden layers can be analysed, pruned and saved.

A custom layer that calls other layers in its `call` is opaque: its config holds the widths that it was made with, and
no rule can know what it does. But a `call` on KerasTensors lists the layers and operations that it runs. If the layer
does nothing else, the list can replace it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import tree

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.effects import keep_attributes, why_not_the_same
from keras_pcp.graph.inside import INERT, Inside, leave_batch_open, look_inside, saveable, unknown_settings
from keras_pcp.graph.listing import nodes_before, note_calls
from keras_pcp.graph.rules import find_rule
from keras_pcp.graph.trace import Trace, functional_graph, trace
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal, undone
from keras_pcp.support.models import check_model

# Methods that a class may override to train, evaluate and predict differently.
_TRAINING = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
)


@dataclass(frozen=True, eq=False)
class Opened:
    """A model with its blocks opened.

    Attributes:
        model: the plain model; the model itself if there was nothing to open.
        blocks: names of the layers and nested models that were replaced by their contents.
        closed: {`id` of a layer without a rule: why it could not be opened}.
        inert: `id`s of layers without weights that return their input unchanged, except in training.
        hiding: the blocks that have to be opened before widths in them change: nested models, and layers with weights.
            The other blocks can stay in the model if they follow the widths of their inputs.
        staying: (call, what it runs) for each call of these other blocks.
        settled: `id`s of the operations in these other blocks, whose settings cannot change.
        tensors: {`id` of a tensor of the model or of the contents of a block: the tensor that replaces it}.
        names: {`id` of an inner operation: its name in the plain model}, for operations whose name was taken.
    """

    model: keras.Model
    blocks: tuple[str, ...] = ()
    closed: Mapping[int, str] = field(default_factory=dict)
    inert: frozenset[int] = frozenset()
    hiding: tuple[str, ...] = ()
    staying: tuple[tuple[Any, Inside], ...] = ()
    settled: frozenset[int] = frozenset()
    tensors: Mapping[int, keras.KerasTensor] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)


def inline_blocks(model: keras.Model) -> keras.Model:
    """Returns a plain functional model made of the same layers, in which blocks are opened.

    A block is a custom layer whose `call` consists of other layers and `keras.ops`. A model that is saved by the
    arguments of its constructor and not by its structure is a block, too (such as the backbones of KerasHub). The
    result computes the same, in training too, and shares layers and weights with `model`. It is not compiled. `model`
    changes in two ways only: its layers remember the calls in the result, and inner layers get new names if another
    layer has theirs.

    A block stays closed in these cases:

    - It does more than compute its outputs with its layers. For example, it assigns to a variable, adds a loss, or
      stores a value in an attribute.
    - It owns weights that belong to no inner layer, or computes with tensors that are not inputs.
    - It does not accept symbolic inputs.

    Every opened block is compared with the closed one on random data.

    A functional model keeps its class, with a custom `train_step` and the like, if the class can be made from inputs
    and outputs. That is so if it has no custom `__init__`, or one that passes `*args, **kwargs` on.

    Prune, train and save the plain model. The config of a block does not hold pruned widths, so a block that has been
    pruned inside could be saved but not loaded.

    Args:
        model: a built Functional or Sequential model.

    Returns:
        The plain model, or `model` itself if it holds no blocks.

    Raises:
        UnsupportedModelError: the model has no functional graph, or its class has custom training methods and cannot be
            made from a graph.

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
    with undone() as journal:
        plain = inlined(check_model("model", model), journal)
        journal.commit()
    return plain


def inlined(model: keras.Model, journal: Journal) -> keras.Model:
    """Does what `inline_blocks` does. Undoing the journal restores the names and calls of the layers.

    After that, the plain model can be run, but not saved or copied.
    """
    plain = _open(model, trace(model), journal).model
    if plain is not model and type(plain) is not type(model):
        check_nothing_lost(model)
    return plain


def check_nothing_lost(model: keras.Model) -> None:
    """Raises UnsupportedModelError if a model has custom training methods, which a plain keras.Model would lose."""
    lost = internals.own_methods(model, _TRAINING)
    if lost:
        cls = type(model).__name__
        raise UnsupportedModelError(
            f"model {model.name!r} is of class {cls}, which cannot be made from a graph of layers, so its own methods "
            f"{', '.join(lost)} would be lost. If you do not need them, use keras.Model(model.inputs, model.outputs). "
            f"If you do, derive {cls} from keras.Model without a custom __init__, make it as {cls}(inputs, outputs), "
            "and afterwards set the attributes that its methods need"
        )


def open_blocks(model: keras.Model, traced: Trace) -> Opened:
    """Opens every block of a model that can be opened. The result says which blocks could not be opened, and why.

    The model and its layers are unchanged afterwards. The layers do not remember the calls in the plain model, or their
    names there. So the plain model can be run and traced, but not saved or copied.
    """
    with undone() as journal:
        return _open(model, traced, journal)


def _open(model: keras.Model, traced: Trace, journal: Journal) -> Opened:
    operations = (model, *traced.operations)
    if not any(map(_to_replace, operations)):
        return Opened(model)
    inliner = _Inliner({op.name: op for op in operations}, journal)
    with undone() as kept:
        keep_attributes(model, kept)
        plain = inliner.convert(model)
    return Opened(
        plain,
        tuple(inliner.blocks),
        inliner.closed,
        frozenset(inliner.inert),
        tuple(name for name, hides in inliner.blocks.items() if hides),
        tuple(inliner.staying),
        frozenset(inliner.settled),
        {old: new for old, (_, new) in inliner.replaced.items()},
        inliner.renamed,
    )


def _to_replace(operation: Any) -> bool:
    if isinstance(operation, keras.Model) and internals.functional_of(operation) is not None:
        return not internals.saved_by_structure(operation)
    return isinstance(operation, keras.Layer) and find_rule(operation) is None and not _is_input(operation)


def _is_input(operation: Any) -> bool:
    return isinstance(operation, keras.layers.InputLayer)


class _Inliner:
    """Rebuilds a graph call by call. Calls whose operation and inputs have not changed are kept."""

    def __init__(self, names: dict[str, Any], journal: Journal):
        self.names, self.journal = names, journal
        self.renamed: dict[int, str] = {}
        self.blocks: dict[str, bool] = {}
        self.staying: list[tuple[Any, Inside]] = []
        self.settled: set[int] = set()
        self.closed: dict[int, str] = {}
        self.inert: set[int] = set()
        self.replaced: dict[int, tuple[Any, Any]] = {}
        self.models: dict[int, keras.Model] = {}

    def convert(self, model: keras.Model) -> keras.Model:
        """Returns a plain model; the model itself if nothing in it was opened."""
        functional = functional_graph(model)
        for node in internals.nodes(functional):
            self.replay(node)
        by_structure = internals.saved_by_structure(model)
        if by_structure and not any(id(t) in self.replaced for t in functional.outputs):
            return model
        if not by_structure:
            self.blocks[model.name] = True
        keeps_class = by_structure and not isinstance(model, keras.Sequential)
        outputs = tree.map_structure(self.current, functional.output)
        plain = (type(model) if keeps_class else keras.Model)(functional.input, outputs, name=model.name)
        if not model.trainable:
            internals.freeze(plain)
        return plain

    def current(self, value: Any) -> Any:
        """Returns the tensor that has replaced a tensor, or the tensor itself."""
        return self.replaced[id(value)][1] if id(value) in self.replaced else value

    def put(self, old: list, new: Any) -> None:
        """Replaces old tensors by new ones."""
        for before, after in zip(old, tree.flatten(new), strict=True):
            self.replaced[id(before)] = (before, after)

    def replay(self, node: Any, block: str | None = None) -> None:
        """Runs a call again on the new tensors, and opens its layer if that is a block."""
        operation = node.operation
        if isinstance(operation, keras.Model) and internals.functional_of(operation) is not None:
            if id(operation) not in self.models:
                self.models[id(operation)] = self.convert(operation)
            operation = self.models[id(operation)]
        args, kwargs = tree.map_structure(self.current, internals.call_arguments(node))
        # Inside a block, a layer that cannot be saved on its own is replaced by its contents, even if it has a rule.
        stands_alone = block is None or saveable(operation)
        if (_to_replace(operation) or not stands_alone) and self.open(node, args, kwargs, block is None):
            return
        if not stands_alone:
            raise _StaysClosed(f"its inner {type(operation).__name__} cannot be saved on its own")
        if block is not None:
            self.claim_name(operation, block)
            if unknown_settings(operation) and not leave_batch_open(operation, args[0].shape):
                raise _StaysClosed(f"{type(operation).__name__} in it depends on a size that is not known")
        if operation is not node.operation or any(id(t) in self.replaced for t in tree.flatten(node.input_tensors)):
            note_calls((args, kwargs), self.journal)
            self.put(node.outputs, operation(*args, **kwargs))

    def open(self, node: Any, args: tuple, kwargs: dict, outermost: bool) -> bool:
        """Runs the contents of a block in its place, and returns whether that was possible."""
        layer = node.operation
        inside = look_inside(layer, args, kwargs)
        if inside is INERT:
            self.inert.add(id(layer))
            return False
        if isinstance(inside, str):
            self.closed[id(layer)] = inside
            return False
        note_calls((args, kwargs), self.journal)
        given = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        actual = [
            t if t.dtype == f.dtype else keras.ops.cast(t, f.dtype) for t, f in zip(given, inside.inputs, strict=True)
        ]
        self.put(inside.inputs, actual)
        blocks = dict(self.blocks)
        self.blocks[layer.name] = bool(layer.weights)
        try:
            for inner in inside.nodes:
                self.replay(inner, layer.name)
            outputs = [self.current(t) for t in inside.outputs]
            if outermost:
                _check_the_same(layer, args, kwargs, outputs)
        except _StaysClosed as error:
            self.closed[id(layer)], self.blocks = str(error), blocks
            return False
        if outermost and not layer.weights:
            self.staying.append((node, inside))
            self.settled |= {id(inner.operation) for inner in nodes_before(outputs, given)}
        self.put(node.outputs, outputs)
        return True

    def claim_name(self, operation: Any, block: str) -> None:
        """Renames an inner operation if another one has its name, because names are unique within a model."""
        name, number = operation.name, 1
        while self.names.setdefault(name, operation) is not operation:
            name = f"{block}_{operation.name}" if number == 1 else f"{block}_{operation.name}_{number}"
            number += 1
        if name != operation.name:
            self.journal.set(operation, "name", name)
            self.renamed[id(operation)] = name


class _StaysClosed(Exception):
    """A block cannot be opened because of a layer in it."""


def _check_the_same(layer: keras.Layer, args: tuple, kwargs: dict, outputs: list[keras.KerasTensor]) -> None:
    """Compares a closed block with everything that replaces it, including opened inner blocks."""
    kwargs = {k: v for k, v in kwargs.items() if k != "training"}
    given = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
    opened = Inside(given, nodes_before(outputs, given), outputs)
    if reason := why_not_the_same(layer, opened.run, opened.structure(), args, kwargs):
        raise _StaysClosed(reason)

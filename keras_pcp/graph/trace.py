"""Turns a model into a flat list of its calls and tensors, including those of nested models."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.support import internals


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation. If the operation is None, it hands tensors over into or out of a nested model.

    Attributes:
        operation: the Keras layer or raw operation; None for a hand-over.
        node: the Keras node of the call; None for a hand-over.
        inputs: indices in `Trace.tensors`.
        outputs: indices in `Trace.tensors`; a hand-over has as many outputs as inputs.
    """

    operation: Any
    node: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def args(self) -> tuple:
        """Positional arguments of the call."""
        return internals.call_arguments(self.node)[0]

    @property
    def kwargs(self) -> dict:
        """Keyword arguments of the call."""
        return internals.call_arguments(self.node)[1]


@dataclass(frozen=True, eq=False)
class Trace:
    """A model's calls in execution order. The order is the same for every model of the same structure.

    Attributes:
        calls: the calls.
        operations: every operation once, in order of first appearance, including nested models and input layers.
        tensors: every KerasTensor once, in order of first appearance.
        inputs, outputs: indices in `tensors` of the inputs and outputs of the model.
        names: keys of the inputs, if the model takes a dict.
    """

    calls: tuple[Call, ...]
    operations: tuple[Any, ...]
    tensors: tuple[keras.KerasTensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    names: tuple[str, ...] = ()


def trace(model: keras.Model) -> Trace:
    """Lists the calls of a Functional or Sequential model.

    Raises:
        UnsupportedModelError: if `model` is not a built Functional or Sequential model.
    """
    return _Tracer().run(model)


def functional_graph(model: keras.Model) -> keras.Model:
    """Returns the functional graph that a model runs.

    Raises:
        UnsupportedModelError: if `model` is not a built Functional or Sequential model.
    """
    functional = internals.functional_of(model)
    if functional is None:
        raise UnsupportedModelError(_why_no_graph(model))
    return functional


def replay(traced: Trace, inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Runs the calls of a trace on arrays, and yields (index in `Trace.tensors`, value) as soon as a value is computed.

    If a nested model is called several times, its tensors are yielded each time. Values are dropped after their last
    use.
    """
    for step in replay_calls(traced, inputs):
        yield from zip(step.call.outputs, step.run(), strict=True)


@dataclass(eq=False)
class Step:
    """A call of a trace with arrays for its tensors, before it is run.

    Attributes:
        call: the call.
        args, kwargs: its arguments, including arrays. The arguments of a hand-over are the arrays that it hands over.
        outputs: its outputs, once it has been run.
    """

    call: Call
    args: tuple
    kwargs: dict
    outputs: list[Any] | None = None

    @property
    def input(self) -> Any:
        """The first array among the arguments."""
        return tree.flatten((self.args, self.kwargs))[0]

    def run(self) -> list[Any]:
        """Runs the call, unless it has been run, and returns its outputs."""
        if self.outputs is None:
            operation = self.call.operation
            found = self.args if operation is None else operation(*self.args, **self.kwargs)
            self.outputs = tree.flatten(found)
        return self.outputs


def replay_calls(traced: Trace, inputs: Sequence[Any]) -> Iterator[Step]:
    """Runs the calls of a trace on arrays, and yields each call before it is run.

    If the weights of a layer are changed between two steps, the following steps use the new values.
    """
    values = dict(zip(traced.inputs, inputs, strict=True))
    last = {i: number for number, call in enumerate(traced.calls) for i in call.inputs}
    for number, call in enumerate(traced.calls):
        step = bound(traced, call, [values[i] for i in call.inputs])
        yield step
        for i in call.inputs:
            if last[i] == number:
                values.pop(i, None)
        values.update(zip(call.outputs, step.run(), strict=True))
        step.args, step.kwargs, step.outputs = (), {}, None  # frees the arrays even if somebody still holds the step


def bound(traced: Trace, call: Call, values: Sequence[Any]) -> Step:
    """Returns a call with values for its inputs, ready to be run."""
    if call.operation is None:
        return Step(call, tuple(values), {})
    place = {id(traced.tensors[i]): value for i, value in zip(call.inputs, values, strict=True)}
    args, kwargs = tree.map_structure(lambda v: place.get(id(v), v), (call.args, call.kwargs))
    return Step(call, args, kwargs)


def tensor_sizes(traced: Trace, x: Any) -> list[int]:
    """Returns how many numbers each tensor holds for one sample. Unknown sizes are taken as the largest size in `x`."""
    largest = max(max(np.shape(a)[1:], default=1) for a in tree.flatten(x))
    return [math.prod(largest if d is None else d for d in t.shape[1:]) for t in traced.tensors]


def arrange_inputs(traced: Trace, x: Any) -> list[Any]:
    """Brings a batch of arrays into the order, types and ranks of the model's inputs."""
    tensors = [traced.tensors[i] for i in traced.inputs]
    given = isinstance(x, Mapping)
    names = next((n for n in (traced.names, [t.name for t in tensors]) if given and n and all(k in x for k in n)), None)
    arrays = [x[name] for name in names] if names else tree.flatten(x)
    found = []
    for array, tensor in zip(arrays, tensors, strict=True):
        missing = len(tensor.shape) - np.ndim(array) == 1 and tensor.shape[-1] == 1
        found.append(keras.ops.convert_to_tensor(array[..., None] if missing else array, tensor.dtype))
    return found


# Settings that decide what an operation does to channels, or how often it uses a weight. None of them is a width.
_SETTINGS = (
    "axis",
    "axes",
    "axis1",
    "axis2",
    "dims",
    "data_format",
    "equation",
    "subscripts",
    "strides",
    "padding",
    "dilation_rate",
    "pool_size",
    "depth_multiplier",
    "block_size",
    "keepdims",
    "source",
    "destination",
    "return_sequences",
)


def fingerprint(traced: Trace, weights: Sequence[Any]) -> str:
    """Returns a digest of a trace: the classes of its calls, their main settings, their tensors and weights.

    Widths and other sizes are left out, so a pruned model has the same fingerprint as the unpruned one. `weights` are
    the weights of the model; their order gives each weight its number.
    """
    index, operations = {id(w): i for i, w in enumerate(weights)}, dict[int, int]()
    digest = hashlib.sha256(repr((traced.inputs, traced.outputs)).encode())
    for call in traced.calls:
        operation = call.operation
        known = id(operation) in operations
        said = [operations.setdefault(id(operation), len(operations)), call.inputs, call.outputs]
        if operation is not None and not known:
            said.append(type(operation).__name__)
            said.append([index.get(id(w)) for w in getattr(operation, "weights", ())])
            said.append([[str(v) for v in tree.flatten(getattr(operation, name, None))] for name in _SETTINGS])
            activation = getattr(operation, "activation", None)
            said.append(getattr(activation, "__name__", type(activation).__name__))
        digest.update(repr(said).encode())
    return digest.hexdigest()


class _Tracer:
    def __init__(self):
        self.calls, self.operations, self.tensors = [], [], []
        self.operation_index, self.tensor_index = {}, {}

    def run(self, model: keras.Model) -> Trace:
        """Lists calls and tensors of a model."""
        functional = self.open(model)
        inputs, outputs = self.indices(functional.inputs), self.indices(functional.outputs)
        structure = functional.input
        names = tuple(sorted(structure)) if isinstance(structure, Mapping) and len(structure) == len(inputs) else ()
        return Trace(tuple(self.calls), tuple(self.operations), tuple(self.tensors), inputs, outputs, names)

    def open(self, model: keras.Model) -> keras.Model:
        """Visits the calls of a model and returns its functional graph."""
        functional = functional_graph(model)
        for operation in functional.operations:
            if isinstance(operation, keras.layers.InputLayer):
                self.add_operation(operation)
        self.indices(functional.inputs)
        for node in internals.nodes(functional):
            self.visit(node)
        return functional

    def visit(self, node: Any) -> None:
        """Lists one call, or the calls of the nested model that it runs."""
        self.add_operation(node.operation)
        inputs, outputs = self.indices(tree.flatten(node.input_tensors)), self.indices(node.outputs)
        nested = isinstance(node.operation, keras.Model) and internals.functional_of(node.operation)
        if not nested:
            self.calls.append(Call(node.operation, node, inputs, outputs))
            return
        inner_inputs = self.indices(nested.inputs)
        self.calls.append(Call(None, None, inputs, inner_inputs))
        self.open(node.operation)
        self.calls.append(Call(None, None, self.indices(nested.outputs), outputs))

    def add_operation(self, operation: Any) -> None:
        """Adds an operation to the list, unless it is there already."""
        if id(operation) not in self.operation_index:
            self.operation_index[id(operation)] = len(self.operations)
            self.operations.append(operation)

    def indices(self, tensors: list[keras.KerasTensor]) -> tuple[int, ...]:
        """Adds tensors to the list, unless they are there already, and returns their indices."""
        for tensor in tensors:
            if id(tensor) not in self.tensor_index:
                self.tensor_index[id(tensor)] = len(self.tensors)
                self.tensors.append(tensor)
        return tuple(self.tensor_index[id(t)] for t in tensors)


def _why_no_graph(model: Any) -> str:
    if not isinstance(model, keras.Model):
        return f"expected a keras.Model, got {type(model).__name__}"
    if isinstance(model, keras.Sequential):
        return (
            f"Sequential model {model.name!r} has no graph yet. Give it an input: start it with keras.Input(shape), "
            "or call model.build(input_shape)"
        )
    inner = [name for name, value in vars(model).items() if isinstance(value, keras.Model) and not name.startswith("_")]
    found = next((name for name in inner if internals.functional_of(vars(model)[name]) is not None), None)
    wraps = (
        f"If it only wraps networks that it trains, prune the one that you need, such as model.{found}. "
        if found
        else ""
    )
    return (
        f"model {model.name!r} of class {type(model).__name__} has no functional graph, so what its layers feed into "
        f"each other is unknown. {wraps}"
        "If its call() runs layers on its inputs, x = keras.Input(shape); keras.Model(x, model.call(x)) gives a model of "
        "the same layers that has a graph. Otherwise build it with the functional API, keras.Model(inputs, outputs)"
    )

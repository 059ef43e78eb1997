"""Checks that blocks without weights, which stay closed in a model shrunk in place, follow the widths of their inputs.

The operations of a block are listed again for the narrower inputs. If they are what the graph predicts, the block holds no
width, and nothing has to be written to it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import Width
from keras_pcp.graph.inside import Inside, leave_batch_open, look_inside, unknown_settings
from keras_pcp.graph.program import Program
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.trace import Trace
from keras_pcp.support import internals
from keras_pcp.support.containers import replaced_at


def widths_in_place(traced: Trace, program: Program, graph: ChannelGraph) -> ChannelGraph:
    """Returns a graph with the widths of the model itself, in which blocks are closed.

    Args:
        traced: the calls of the model.
        program: the program of the model, with its blocks opened, on which the graph is one.
        graph: the graph.
    """
    plain, opened = program.trace, program.opened
    if not opened.blocks:
        return graph
    place = {id(tensor): i for i, tensor in enumerate(plain.tensors)}
    tensors: dict[int, list[int]] = {}
    for i, tensor in enumerate(traced.tensors):
        found = place.get(id(opened.tensors.get(id(tensor), tensor)))
        if found is not None:
            tensors.setdefault(found, []).append(i)
    operations = {id(op): i for i, op in enumerate(traced.operations)}
    calls = {call.outputs[0]: number for number, call in enumerate(traced.calls) if call.operation is not None}

    def indices(width: Width) -> list[int]:
        if width.owner == "tensor":
            return tensors.get(width.index, [])
        if width.owner == "operation":
            found = operations.get(id(plain.operations[width.index]))
            return [] if found is None else [found]
        call = plain.calls[width.index]
        numbers = [calls[i] for i in tensors.get(call.outputs[0], []) if i in calls]
        return [n for n in numbers if traced.calls[n].operation is call.operation]

    return replace(graph, widths=tuple(replace(w, index=i) for w in graph.widths for i in indices(w)))


def half_of(graph: ChannelGraph) -> Selection:
    """Returns a selection of about half of the channels of every group."""
    return Selection({group.name: np.arange(group.num_channels) % 2 == 0 for group in graph})


def check_blocks_follow(program: Program, graph: ChannelGraph, selection: Selection) -> None:
    """Raises UnsupportedModelError if a block that stays closed does not do on narrower inputs what the graph predicts."""
    if not program.opened.staying:
        return
    narrow = _Narrow(program, graph, selection)
    for node, inside in program.opened.staying:
        layer = node.operation
        args, kwargs = tree.map_structure(narrow.stand_in, internals.call_arguments(node))
        found = look_inside(layer, args, kwargs)
        reason = found if isinstance(found, str) else narrow.difference(inside, found)
        if reason:
            raise UnsupportedModelError(
                f"layer {layer.name!r} ({type(layer).__name__}) does not follow the widths of its inputs: with fewer "
                f"channels, {reason}. Let its call() take sizes from the shapes of its inputs, freeze the layers before "
                "it (frozen_layers), or open it first: model = keras_pcp.inline_blocks(model), then compile and train that"
            )


class _Narrow:
    """What the graph predicts for the tensors and operations of an opened model after channels are removed."""

    def __init__(self, program: Program, graph: ChannelGraph, selection: Selection):
        self.opened, plain = program.opened, program.trace
        self.tensors = {id(tensor): i for i, tensor in enumerate(plain.tensors)}
        self.operations = {id(op): i for i, op in enumerate(plain.operations)}
        self.calls = {i: number for number, call in enumerate(plain.calls) for i in call.outputs[:1] if call.node}
        self.new: dict[tuple[str, int], dict[tuple, int]] = {}
        for width in graph.widths:
            new = width.extent.after(selection.keep)
            if new != width.extent.size:
                self.new.setdefault((width.owner, width.index), {})[width.path] = new

    def current(self, tensor: keras.KerasTensor) -> int | None:
        """Returns the index of the tensor that has replaced a tensor."""
        return self.tensors.get(id(self.opened.tensors.get(id(tensor), tensor)))

    def widths(self, owner: str, index: int | None) -> Mapping[tuple, int]:
        """Returns the new widths of an operation, of a call or of a tensor; none for one that is not in the trace."""
        return {} if index is None else self.new.get((owner, index), {})

    def shape(self, tensor: keras.KerasTensor) -> tuple:
        """Returns the shape that a tensor will have."""
        new = self.widths("tensor", self.current(tensor))
        return tuple(new.get((axis,), size) for axis, size in enumerate(tensor.shape))

    def stand_in(self, value: Any) -> Any:
        """Returns a tensor in the shape that a tensor will have; returns other values unchanged."""
        return keras.KerasTensor(self.shape(value), value.dtype) if isinstance(value, keras.KerasTensor) else value

    def difference(self, before: Inside, after: Inside) -> str | None:
        """Returns how a block's operations on narrower inputs differ from the prediction, or None."""
        if before.structure() != after.structure():
            return "it runs other operations"
        for old, new in zip(before.nodes, after.nodes, strict=True):
            name = type(old.operation).__name__
            for a, b in zip(old.outputs, new.outputs, strict=True):
                if any(is_now not in (None, size) for size, is_now in zip(self.shape(a), b.shape, strict=True)):
                    return f"{name} in it gives shape {tuple(b.shape)} instead of {self.shape(a)}"
            if unknown_settings(new.operation):
                leave_batch_open(new.operation, self.shape(old.input_tensors[0]))
            if not self.same_settings(old, new):
                return f"{name} in it has other settings than it should have"
        return None

    def same_settings(self, old: Any, new: Any) -> bool:
        """Returns whether a call has the predicted widths and is otherwise the same."""
        plain = self.current(old.outputs[0])
        call = None if plain is None else self.calls.get(plain)
        args, kwargs = internals.call_arguments(old)
        expected = {"args": args, "kwargs": kwargs}
        for path, value in self.widths("argument", call).items():
            expected = replaced_at(expected, path, value)
        if _comparable(expected) != _comparable(
            dict(zip(("args", "kwargs"), internals.call_arguments(new), strict=True))
        ):
            return False
        widths = self.widths("operation", self.operations.get(id(old.operation)))
        settings = {k: v for k, v in vars(old.operation).items() if k in vars(new.operation)}
        for path, value in widths.items():
            settings = replaced_at(settings, path, value)
        if isinstance(old.operation, keras.Layer):
            return all(_comparable(settings[p[0]]) == _comparable(vars(new.operation)[p[0]]) for p in widths)
        return all(
            _comparable(v) == _comparable(vars(new.operation)[k])
            for k, v in settings.items()
            if k != "name" and not k.startswith("_")
        )


def _comparable(value: Any) -> str:
    return repr(tree.map_structure(lambda v: "tensor" if isinstance(v, keras.KerasTensor) else repr(v), value))

"""Sizes of tensors that are unknown in the trace: a nested model may be made for any size and called with a fixed one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import keras
from keras import tree

from keras_pcp.graph.trace import Call, Trace, bound


@dataclass(frozen=True, eq=False)
class Sized:
    """A call with KerasTensors for its arguments and outputs, in the sizes of this call."""

    args: tuple
    kwargs: dict
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def as_traced(traced: Trace, call: Call) -> Sized:
    """Returns a call with the tensors that the trace lists for it."""
    inputs, outputs = (tuple(traced.tensors[i] for i in indices) for indices in (call.inputs, call.outputs))
    return Sized(call.args, call.kwargs, inputs, outputs)


def sized_calls(traced: Trace, inputs: Sequence[keras.KerasTensor] | None = None) -> dict[int, Sized]:
    """Returns {number of a call: the call with its own sizes} for calls whose sizes differ from the traced ones.

    If the trace lacks sizes, they are inferred call by call from the inputs of the whole model, or from `inputs` instead.
    Sizes that cannot be inferred stay as in the trace.
    """
    known = {} if inputs is None else _where_other(traced, zip(traced.inputs, inputs, strict=True))
    found = {}
    for number, call in enumerate(traced.calls):
        given = tuple(known.get(i, traced.tensors[i]) for i in call.inputs)
        outputs = tuple(traced.tensors[i] for i in call.outputs)
        if call.operation is None:
            outputs = given
        elif any(i in known for i in call.inputs) or (_all_known(given) and not _all_known(outputs)):
            step = bound(traced, call, given)
            outputs = _inferred(call, given, step.args, step.kwargs) or outputs
            found[number] = Sized(step.args, step.kwargs, given, outputs)
        for i in call.outputs:
            known.pop(i, None)  # it came from an earlier call of the same nested model
        known.update(_where_other(traced, zip(call.outputs, outputs, strict=True)))
    return found


def _inferred(call: Call, given: Sequence[keras.KerasTensor], args: tuple, kwargs: dict) -> tuple | None:
    """Infers outputs from the layer, or, if the layer knows less than its `call` shows (as EinsumDense), from the call."""
    operation = call.operation
    try:
        outputs = tuple(tree.flatten(operation.compute_output_spec(*args, **kwargs)))
        if isinstance(operation, keras.Layer) and _all_known(given) and not _all_known(outputs):
            outputs = tuple(tree.flatten(keras.Operation.compute_output_spec(operation, *args, **kwargs)))
    except Exception:  # the code of a layer may raise anything on tensors that it was not built with
        return None
    return outputs if len(outputs) == len(call.outputs) else None


def _all_known(tensors: Iterable[keras.KerasTensor]) -> bool:
    return all(None not in t.shape[1:] for t in tensors)


def _where_other(traced: Trace, pairs: Iterable[tuple[int, keras.KerasTensor]]) -> dict[int, keras.KerasTensor]:
    """Returns {index: tensor of the known sizes} for the tensors whose sizes are known better than in the trace."""
    other = {}
    for i, tensor in pairs:
        own = traced.tensors[i]
        if len(own.shape) == len(tensor.shape):
            shape = tuple(b if a is None else a for a, b in zip(own.shape, tensor.shape, strict=True))
            if shape != tuple(own.shape):
                other[i] = keras.KerasTensor(shape, own.dtype)
    return other

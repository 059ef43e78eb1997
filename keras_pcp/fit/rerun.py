"""Runs a model with some weights changed, and computes only the values that this changes."""

from collections.abc import Collection, Sequence
from functools import cached_property, partial
from typing import Any

import keras
import tensorflow as tf

from keras_pcp.graph.trace import Trace, bound
from keras_pcp.support import internals

# Eager runs before a rerun is compiled. Over this many runs of 128 small images, eager mode loses what tracing costs.
_RUNS_BEFORE_COMPILING = 6


class Recording:
    """All values of one run of a trace.

    Args:
        traced: the trace.
        inputs: one array for each input of the model, in order.
    """

    def __init__(self, traced: Trace, inputs: Sequence[Any]):
        values = dict(zip(traced.inputs, inputs, strict=True))
        self.inputs: list[list[Any]] = []  # of each call
        with internals.stateless():
            for call in traced.calls:
                self.inputs.append([values[i] for i in call.inputs])
                values.update(zip(call.outputs, bound(traced, call, self.inputs[-1]).run(), strict=True))
        self.outputs = [values[i] for i in traced.outputs]


class Rerun:
    """Computes again what changes when some weights change: the layers with these weights, and all that depends on
    them.

    It uses the current variables of the model. Their values may change between the runs.

    Args:
        traced: the trace.
        changed: `id`s of the operations whose weights change.
        weights: the variables that change.
        compiling: whether to compile it after a few runs.

    Attributes:
        calls: for each call that is made, its number and which of its inputs are computed again.
    """

    def __init__(self, traced: Trace, changed: Collection[int], weights: Sequence[Any], compiling: bool = True):
        self.traced, self.weights, self.compiling, self.runs = traced, weights, compiling, 0
        self.calls: list[tuple[int, list[bool]]] = []
        new: set[int] = set()
        for number, call in enumerate(traced.calls):
            if id(call.operation) in changed or new.intersection(call.inputs):
                self.calls.append((number, [i in new for i in call.inputs]))
                new.update(call.outputs)
            else:
                new.difference_update(call.outputs)  # a nested model is called again, on recorded values this time
        self.is_new = [i in new for i in traced.outputs]

    def run(self, recording: Recording, values: Sequence[Any]) -> list[Any]:
        """Returns the outputs of the model with other values of the weights, on the inputs of a recording."""
        self.runs += 1
        compute = self.compiled if self.compiling and self.runs > _RUNS_BEFORE_COMPILING else self.compute
        recorded = [
            value
            for number, new in self.calls
            for value, is_new in zip(recording.inputs[number], new, strict=True)
            if not is_new
        ]
        found = iter(compute(recorded, [keras.ops.convert_to_tensor(v) for v in values]))
        return [next(found) if new else old for new, old in zip(self.is_new, recording.outputs, strict=True)]

    def compute(self, recorded: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        """Computes the outputs that change, from the recorded values that they depend on."""
        recorded, found = iter(recorded), {}
        with internals.stateless(list(zip(self.weights, values, strict=True))):
            for number, new in self.calls:
                call = self.traced.calls[number]
                inputs = [found[i] if n else next(recorded) for i, n in zip(call.inputs, new, strict=True)]
                found.update(zip(call.outputs, bound(self.traced, call, inputs).run(), strict=True))
        return [found[i] for i, new in zip(self.traced.outputs, self.is_new, strict=True) if new]

    @cached_property
    def compiled(self):
        """`compute` as a TensorFlow function."""
        return tf.function(partial(self.compute), autograph=False, reduce_retracing=True)

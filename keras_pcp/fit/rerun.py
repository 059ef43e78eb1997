"""Runs a model with some weights changed, and computes only the values that this changes."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from keras_pcp.graph.segments import Called, Segment, segment
from keras_pcp.graph.trace import Trace
from keras_pcp.support import internals

Tensors = Mapping[int, tuple[Any, Any]]  # {number of a tensor: (value, mask or None)}


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run of a model has computed at the borders of its segments.

    Attributes:
        read: what each segment reads.
        made: what each segment has made.
        outputs: the outputs of the model.
    """

    read: Sequence[Tensors]
    made: Sequence[Tensors]
    outputs: list[Any]


class Segmented:
    """A model in segments. Each is traced once for a shape of its inputs, whichever of its weights change.

    It uses the current variables of the model. Their values may change between the runs.

    Args:
        traced: the trace.
        starts: numbers of the calls with which a segment begins.
        weights: the variables that may change.
        compiling: whether to compile the segments.

    Attributes:
        segments: the segments as functions, in order.
    """

    def __init__(self, traced: Trace, starts: Collection[int], weights: Sequence[Any], compiling: bool = True):
        self.traced = traced
        edges = itertools.pairwise([*sorted({0, *starts}), len(traced.calls)])
        self.segments = [_Function(traced, segment(traced, *edge), weights, compiling) for edge in edges]

    def record(self, inputs: Sequence[Any]) -> Recording:
        """Runs the model on one array for each of its inputs, in order."""
        values: dict[int, Any] = {i: (x, None) for i, x in zip(self.traced.inputs, inputs, strict=True)}
        read, made = [], []
        for function in self.segments:
            read.append({i: values[i] for i in function.segment.inputs})
            made.append(function.run(read[-1], {}))
            values |= made[-1]
        return Recording(read, made, [values[i][0] for i in self.traced.outputs])

    def run(self, recording: Recording, changed: Mapping[int, Any]) -> tuple[list[Any], list[Segment]]:
        """Runs the segments that change if weights do.

        Args:
            recording: of a run with all weights as they are.
            changed: {`id` of a variable: its value}.

        Returns:
            The outputs of the model, and the segments that have been run.
        """
        values: dict[int, Any] = {}  # of the tensors that are not as recorded
        ran = []
        for function, read, made in zip(self.segments, recording.read, recording.made, strict=True):
            if changed.keys() & function.variables.keys() or values.keys() & read.keys():
                values |= function.run({i: values.get(i, recorded) for i, recorded in read.items()}, changed)
                ran.append(function.segment)
            else:  # tensors of a nested model that is called again are now as recorded in this call
                values = {i: value for i, value in values.items() if i not in made}
        outputs = zip(self.traced.outputs, recording.outputs, strict=True)
        return [values[i][0] if i in values else recorded for i, recorded in outputs], ran


class _Function:
    """A segment as a function of the tensors and the weights that it reads.

    Attributes:
        segment: the segment.
        variables: {`id`: variable} of the weights that may change.
        compute: the function of values, masks and weights; compiled if asked for.
    """

    def __init__(self, traced: Trace, calls: Segment, weights: Sequence[Any], compiling: bool):
        self.segment, self.called = calls, Called(traced, calls)
        operations = [call.operation for call in traced.calls[calls.start : calls.stop]]
        used = {id(w) for operation in operations for w in getattr(operation, "weights", ())}
        self.variables = {id(w): w for w in weights if id(w) in used}
        # A partial has no code that others share; by its code, TensorFlow would count all of them as one function.
        compute = partial(self._compute)
        self.compute = tf.function(compute, autograph=False, reduce_retracing=True) if compiling else compute

    def run(self, values: Tensors, changed: Mapping[int, Any]) -> dict[int, Any]:
        """Returns what the segment makes of some values, with some weights changed."""
        weights = [
            keras.ops.convert_to_tensor(changed[i], w.dtype) if i in changed else tf.convert_to_tensor(w.value)
            for i, w in self.variables.items()
        ]
        given = [values[i] for i in self.segment.inputs]
        made, masks = self.compute([value for value, _ in given], [mask for _, mask in given], weights)
        return dict(zip(self.segment.outputs, zip(made, masks, strict=True), strict=True))

    def _compute(self, given: Sequence[Any], masks: Sequence[Any], weights: Sequence[Any]) -> tuple[list, list]:
        values = dict(zip(self.segment.inputs, map(internals.with_mask, given, masks), strict=True))
        with internals.stateless(list(zip(self.variables.values(), weights, strict=True))):
            found = self.called(values, training=False)
        made = [found[i] for i in self.segment.outputs]
        return made, [internals.mask_of(value) for value in made]

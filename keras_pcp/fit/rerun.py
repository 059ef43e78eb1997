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

Tensors = Mapping[int, Any]  # {number of a tensor: (value, mask or None)}


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run of a model has computed at the borders of its pieces.

    Attributes:
        inputs: what each piece reads.
        made: what each piece has made.
        outputs: the outputs of the model.
    """

    inputs: Sequence[Tensors]
    made: Sequence[Tensors]
    outputs: list[Any]


class Pieces:
    """A model in pieces, each of which is traced once, whichever of its weights change.

    It uses the current variables of the model. Their values may change between the runs.

    Args:
        traced: the trace.
        starts: numbers of the calls with which a piece begins.
        weights: the variables that may change.
        compiling: whether to compile the pieces.

    Attributes:
        pieces: the pieces, in order.
    """

    def __init__(self, traced: Trace, starts: Collection[int], weights: Sequence[Any], compiling: bool = True):
        self.traced = traced
        edges = [*sorted({0, *starts}), len(traced.calls)]
        self.pieces = [Piece(traced, segment(traced, *edge), weights, compiling) for edge in itertools.pairwise(edges)]

    def record(self, inputs: Sequence[Any]) -> Recording:
        """Runs the model on one array for each of its inputs, in order."""
        values: dict[int, Any] = {i: (x, None) for i, x in zip(self.traced.inputs, inputs, strict=True)}
        read, made = [], []
        for piece in self.pieces:
            read.append({i: values[i] for i in piece.calls.inputs})
            made.append(piece.run(read[-1], {}))
            values |= made[-1]
        return Recording(read, made, [values[i][0] for i in self.traced.outputs])

    def run(self, recording: Recording, changed: Mapping[int, Any]) -> tuple[list[Any], list[Segment]]:
        """Runs the pieces that change if weights do.

        Args:
            recording: of a run with all weights as they are.
            changed: {`id` of a variable: its value}.

        Returns:
            The outputs of the model, and what has been run.
        """
        values: dict[int, Any] = {}  # of the tensors that are not as recorded
        ran = []
        for piece, inputs, made in zip(self.pieces, recording.inputs, recording.made, strict=True):
            if changed.keys() & piece.variables.keys() or values.keys() & inputs.keys():
                values |= piece.run({i: values.get(i, recorded) for i, recorded in inputs.items()}, changed)
                ran.append(piece.calls)
            else:  # what a nested model has made in an earlier call is made again
                values = {i: value for i, value in values.items() if i not in made}
        outputs = zip(self.traced.outputs, recording.outputs, strict=True)
        return [values[i][0] if i in values else recorded for i, recorded in outputs], ran


class Piece:
    """Some calls of a model as a function of the tensors and the weights that they read.

    Attributes:
        calls: the calls.
        variables: {`id`: variable} of the weights that may change.
    """

    def __init__(self, traced: Trace, calls: Segment, weights: Sequence[Any], compiling: bool):
        self.traced, self.calls, self.called = traced, calls, Called(traced, calls)
        used = {
            id(w) for call in traced.calls[calls.start : calls.stop] for w in getattr(call.operation, "weights", ())
        }
        self.variables = {id(w): w for w in weights if id(w) in used}
        # A partial has no code that others share; by its code, TensorFlow would count all of them as one function.
        self.function = tf.function(partial(self.compute), autograph=False)
        self.compiling, self.compiled = compiling, None

    def run(self, values: Tensors, changed: Mapping[int, Any]) -> dict[int, Any]:
        """Returns what the calls make of some values, with some weights changed."""
        weights = [
            keras.ops.convert_to_tensor(changed[i] if i in changed else w.value, w.dtype)
            for i, w in self.variables.items()
        ]
        given = [values[i][0] for i in self.calls.inputs]
        masks = [values[i][1] for i in self.calls.inputs]
        arrays = given, [m for m in masks if m is not None], weights
        self.masked = [m is not None for m in masks]
        if self.compiling and self.compiled is None:
            self.compiled = self.function.get_concrete_function(*self._for_any_batch(*arrays))
        found = (self.compiled or self.compute)(*arrays)
        return dict(zip(self.calls.outputs, zip(*found, strict=True), strict=True))

    def compute(self, given: Sequence[Any], masks: Sequence[Any], weights: Sequence[Any]) -> tuple[list, list]:
        """Returns the values that the calls make, and their masks, if weights have these values."""
        left = iter(masks)
        given = [
            internals.with_mask(v, next(left) if masked else None) for v, masked in zip(given, self.masked, strict=True)
        ]
        with internals.stateless(list(zip(self.variables.values(), weights, strict=True))):
            found = self.called(dict(zip(self.calls.inputs, given, strict=True)), training=False)
        made = [found[i] for i in self.calls.outputs]
        return made, [internals.mask_of(v) for v in made]

    def _for_any_batch(self, given: Sequence[Any], masks: Sequence[Any], weights: Sequence[Any]) -> tuple[list, ...]:
        """Returns the types of arrays, with those dimensions left open that the model leaves open."""

        def opened(value: Any, tensor: int) -> tf.TensorSpec:
            known = zip(self.traced.tensors[tensor].shape, value.shape, strict=False)
            return tf.TensorSpec([now if always is not None else None for always, now in known], value.dtype)

        tensors = self.calls.inputs
        of_masks = itertools.compress(tensors, self.masked)
        return (
            list(map(opened, given, tensors)),
            list(map(opened, masks, of_masks)),
            [tf.TensorSpec(w.shape, w.dtype) for w in weights],
        )

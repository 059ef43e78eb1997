"""Runs a part of a network: a series of consecutive calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_pcp.graph.trace import Trace, bound


@dataclass(frozen=True)
class Segment:
    """The calls `start` to `stop - 1` of a trace.

    Attributes:
        start, stop: numbers of calls.
        inputs: numbers of the tensors that the segment reads and does not make, those of the model's inputs included.
        outputs: numbers of the tensors that it makes and that later calls or the user of the model read.
    """

    start: int
    stop: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, traced: Trace, values: Mapping[int, Any]) -> dict[int, Any]:
        """Runs the segment on values of its inputs, {number of a tensor: value}; returns those of its outputs.

        Whether it is training is decided by the Keras call around it, as in `keras.Model.call`; see `Called`.
        """
        values = {i: values[i] for i in self.inputs}
        for call in traced.calls[self.start : self.stop]:
            step = bound(traced, call, [values[i] for i in call.inputs])
            step.kwargs.pop("training", None)
            values.update(zip(call.outputs, step.run(), strict=True))
        return {i: values[i] for i in self.outputs}


class Called(keras.layers.Layer):
    """Runs a segment where no Keras call is around it that could say whether it is training."""

    def __init__(self, traced: Trace, segment: Segment):
        super().__init__(autocast=False)
        self.supports_masking = True
        self.run = lambda values: segment.run(traced, values)

    def call(self, values: Mapping[int, Any], training: bool = False) -> dict[int, Any]:
        """Returns the outputs of the segment. They have the masks that its last layers gave them."""
        return self.run(values)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Adds no masks."""


def segment(traced: Trace, start: int = 0, stop: int | None = None) -> Segment:
    """Returns some of the calls of a trace as a segment; all calls by default."""
    calls, later = traced.calls[start:stop], traced.calls[len(traced.calls) if stop is None else stop :]
    made = dict.fromkeys(i for call in calls for i in call.outputs)
    wanted = {i for call in later for i in call.inputs} | set(traced.outputs)
    before: dict[int, None] = {}
    known: set[int] = set()
    for call in calls:
        before |= dict.fromkeys(i for i in call.inputs if i not in known)
        known |= set(call.outputs)
    return Segment(start, start + len(calls), tuple(before), tuple(i for i in made if i in wanted))

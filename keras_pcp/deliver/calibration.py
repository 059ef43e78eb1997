"""Finds values that int8 quantization cannot handle: those that are not finite, and outputs without a range."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_pcp.errors import ExportError, InvalidArgumentError
from keras_pcp.graph.trace import replay_calls, trace
from keras_pcp.support import internals
from keras_pcp.support.text import shorten

CALIBRATION_SAMPLES = 200
_BATCH = 16
_ADVICE = "quantization='dynamic' and 'float16' need no calibration"


def check_calibration(model: keras.Model, inputs: Sequence[np.ndarray]) -> None:
    """Checks that data, weights and the outputs of all layers are finite. Otherwise the quantizer of LiteRT crashes.

    Raises:
        InvalidArgumentError: the data is not finite, or the model fails on it.
        ExportError: a weight or an output of a layer is not finite.
    """
    for number, array in enumerate(inputs):
        bad = [i for i, sample in enumerate(array) if not _is_finite(_range(sample))]
        if bad:
            raise InvalidArgumentError(
                f"representative_data of input {number} holds NaN, infinite or too large values in sample(s) "
                f"{shorten(map(str, bad))}; remove them"
            )
    for weight in model.weights:
        if not _is_finite(_range(weight)):
            raise ExportError(f"weight {weight.path} of {model.name!r} holds NaN or infinite values; train it again")
    for name, low, high in _ranges(model, inputs):
        if not _is_finite((low, high)):
            raise ExportError(
                f"layer {name!r} computes NaN, infinite or too large values for representative_data ({low:.3g} to "
                f"{high:.3g}), which int8 cannot hold; check the data and the weights. No file was written"
            )


def narrow_outputs(model: keras.Model, inputs: Sequence[np.ndarray]) -> str:
    """Returns a sentence about outputs for which LiteRT may find no int8 range; empty if none are known."""
    found: dict[str, tuple[float, float]] = {}
    for name, low, high in _ranges(model, inputs):
        old = found.get(name, (low, high))
        found[name] = min(old[0], low), max(old[1], high)
    constant = [name for name, (low, high) in found.items() if low == high]
    if constant:
        return (
            f" The outputs of layer(s) {shorten(map(repr, constant))} are the same for all of representative_data, so "
            "they have no int8 range. Their channels are dead, or all samples are the same. Train the model, prune less, "
            f"or pass other samples; {_ADVICE}."
        )
    if not found:
        return ""
    name = min(found, key=lambda n: found[n][1] - found[n][0])
    low, high = found[name]
    return (
        f" The outputs of layer {name!r} vary least for representative_data, from {low:.3g} to {high:.3g}, which may be "
        f"too little for int8; {_ADVICE}."
    )


def _ranges(model: keras.Model, inputs: Sequence[np.ndarray]) -> Iterator[tuple[str, float, float]]:
    """Yields the name of each layer and the range of its outputs on some samples; nothing for a model without a graph."""
    if internals.functional_of(model) is None:
        return
    traced = trace(model)
    for start in range(0, min(CALIBRATION_SAMPLES, len(inputs[0])), _BATCH):
        batch = [keras.ops.convert_to_tensor(a[start : min(start + _BATCH, CALIBRATION_SAMPLES)]) for a in inputs]
        found = []
        try:
            with internals.stateless():
                for step in replay_calls(traced, batch):
                    if step.call.operation is not None:
                        found += [(step.call.operation.name, *r) for r in map(_range, step.run()) if r]
        except Exception as error:  # Keras, TensorFlow and custom layers raise many classes
            raise InvalidArgumentError(
                f"{model.name!r} fails on representative_data, samples {start} and following: "
                f"{str(error).strip().partition(chr(10))[0][:300]}"
            ) from error
        yield from found


def _range(values: Any) -> tuple[float, float] | None:
    """Returns the smallest and the largest of some floating-point values."""
    if "float" not in keras.backend.standardize_dtype(values.dtype):
        return None
    array = np.asarray(keras.ops.cast(values, "float32"))
    return (float(array.min()), float(array.max())) if array.size else None


def _is_finite(limits: tuple[float, float] | None) -> bool:
    """Returns whether both limits, and the distance between them, fit into float32."""
    return limits is None or bool(max(limits[1], 0.0) - min(limits[0], 0.0) <= np.finfo("float32").max)

"""Writes LiteRT (TFLite) files, and checks that they compute what the model computes."""

import contextlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import tree

from keras_pcp.deliver import conversion
from keras_pcp.deliver.calibration import CALIBRATION_SAMPLES, check_calibration, narrow_outputs
from keras_pcp.errors import ExportError, InvalidArgumentError
from keras_pcp.support.files import check_target, write
from keras_pcp.support.text import first_line

# Largest allowed error, as a fraction of the range of the Keras outputs: at any element for the exact formats; on average
# for the quantized ones, in which single values may be several quantization steps off.
_TOLERANCE = {None: 1e-4, "float16": 1e-2, "dynamic": 5e-2, "int8": 5e-2}
Quantization = Literal["float16", "dynamic", "int8"]
_SAMPLES = 16
_CONVERTER = conversion.Converter()


@dataclass(frozen=True)
class LiteRTFile:
    """A verified LiteRT file: its path, size in bytes, and error relative to the range of the Keras outputs."""

    path: Path
    bytes: int
    max_error: float
    mean_error: float


def export_litert(
    model: keras.Model,
    path: str | Path,
    *,
    quantization: Quantization | None = None,
    representative_data: Any = None,
    tolerance: float | None = None,
) -> LiteRTFile:
    """Writes a model as a LiteRT file for batches of one, after running the file and comparing it with Keras.

    Args:
        model: a built model.
        path: file to write, usually `*.tflite`. It is only written if the comparison succeeds.
        quantization: None (float32), `"float16"` (weights), `"dynamic"` (int8 weights) or `"int8"` (weights and
            activations; inputs and outputs stay float32).
        representative_data: inputs for `"int8"` calibration (which runs in a separate process) and for the comparison:
            arrays with a batch axis, in the model's input structure or in a dict by the names of the inputs. Without it,
            the comparison uses normally distributed inputs.
        tolerance: largest allowed error as a fraction of the output range; None: 1e-4 for float32, 1e-2 for float16
            (at any element), 0.05 for the int8 formats (on average).

    Returns:
        A `LiteRTFile` with path, bytes and measured errors.

    Raises:
        ExportError: LiteRT cannot convert the model or run the file, the file does not compute what the model computes,
            or values in the model are not finite. An existing file is unchanged.
        InvalidArgumentError: an argument is out of range, or the data does not fit the model.
        FileError: the system cannot write the file. An existing file is unchanged.

    Example:
        >>> import keras, keras_pcp, tempfile
        >>> x = keras.Input((8, 8, 1))
        >>> y = keras.layers.Conv2D(4, 3, activation="relu")(x)
        >>> model = keras.Model(x, keras.layers.GlobalAveragePooling2D()(y))
        >>> file = keras_pcp.export_litert(model, tempfile.mkdtemp() + "/small.tflite")
        >>> file.bytes > 0 and file.max_error < 1e-4
        True
    """
    _check_options(model, quantization, representative_data, tolerance)
    path = check_target(path)
    inputs = _samples(model, representative_data)
    if quantization == "int8":
        check_calibration(model, inputs)
    expected = _computed(model, inputs)
    content = _convert(model, quantization, inputs)
    try:
        max_error, mean_error = _compare(content, inputs, expected)
    except (RuntimeError, ValueError) as error:
        advice = narrow_outputs(model, inputs) if quantization == "int8" else ""
        raise ExportError(
            f"LiteRT cannot run its own file of {model.name!r} (quantization={quantization}): {first_line(error)}."
            f"{advice} No file was written"
        ) from error
    limit = _TOLERANCE[quantization] if tolerance is None else tolerance
    judged = max_error if quantization in (None, "float16") else mean_error
    if not judged <= limit:
        raise ExportError(
            f"the LiteRT file of {model.name!r} (quantization={quantization}) differs from Keras by {judged:.2e} of the "
            f"output range (largest {max_error:.2e}, mean {mean_error:.2e}); allowed is {limit:.0e}. No file was written"
        )
    write(path, content)
    return LiteRTFile(path, len(content), max_error, mean_error)


def _check_options(model: Any, quantization: Any, data: Any, tolerance: Any) -> None:
    if not isinstance(model, keras.Model):
        raise InvalidArgumentError(f"model must be a keras.Model, got {type(model).__name__}")
    if not getattr(model, "inputs", None):
        raise InvalidArgumentError(
            f"model {model.name!r} has no symbolic inputs; build it with the functional API, or start a Sequential model "
            "with keras.Input(shape)"
        )
    if not isinstance(quantization, str | None) or quantization not in _TOLERANCE:
        raise InvalidArgumentError(f"quantization must be one of {list(_TOLERANCE)}, got {quantization!r}")
    if quantization == "int8" and data is None:
        raise InvalidArgumentError("quantization='int8' needs representative_data: some real inputs for calibration")
    if tolerance is not None and not (isinstance(tolerance, int | float | np.number) and tolerance >= 0):
        raise InvalidArgumentError(f"tolerance must be a number of at least 0, or None, got {tolerance!r}")


def _samples(model: keras.Model, data: Any) -> list[np.ndarray]:
    """Returns a flat list of input arrays."""
    specs = model.inputs
    if data is None:
        if any(None in t.shape[1:] for t in specs):
            raise InvalidArgumentError(
                f"input shape {model.input_shape} has unknown sizes; pass representative_data of the size that you want"
            )
        rng = np.random.default_rng(0)
        return [_random_input(rng, (_SAMPLES, *t.shape[1:]), t.dtype) for t in specs]
    try:
        arrays = [np.asarray(a) for a in _in_order(model, data)]
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, objects that are not arrays
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"representative_data does not hold arrays: {first_line(error)}") from error
    if (
        len(arrays) != len(specs)
        or len({a.shape[:1] for a in arrays}) > 1
        or not all(a.size and _fits(a.shape, t.shape) for a, t in zip(arrays, specs, strict=True))
    ):
        raise InvalidArgumentError(
            f"representative_data has shapes {[a.shape for a in arrays]}, the model takes "
            f"{[tuple(t.shape) for t in specs]} (batch axis first, at least one sample, labels left out)"
        )
    return [_cast(a, t, i) for i, (a, t) in enumerate(zip(arrays, specs, strict=True))]


def _in_order(model: keras.Model, data: Any) -> list[Any]:
    """Lists the arrays of a structure in the order of the model's inputs; a dict may also use their names."""
    if not isinstance(data, Mapping) or len(data) == len(model.inputs) == 1:
        return tree.flatten(data)
    names = [t.name for t in model.inputs]
    places = tree.pack_sequence_as(model.input, list(range(len(names))))
    if isinstance(places, Mapping) and all(isinstance(i, int) for i in places.values()):
        names = sorted(places, key=places.__getitem__)
    elif isinstance(places, Mapping):  # nested structures
        return tree.flatten(data)
    if not set(names) <= set(data):
        raise InvalidArgumentError(f"representative_data has the entries {sorted(data)}, the model takes {names}")
    return [data[name] for name in names]


def _fits(shape: tuple, wanted: tuple) -> bool:
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape[1:], wanted[1:], strict=True))


def _cast(array: np.ndarray, tensor: Any, number: int) -> np.ndarray:
    """Returns an array in the type of its input; rejects values that this type cannot hold."""
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InvalidArgumentError(f"representative_data must hold numbers, input {number} is of type {array.dtype}")
    with np.errstate(all="ignore"):
        found = array.astype(tensor.dtype)
        same = "float" in tensor.dtype or np.array_equal(found.astype(array.dtype), array)
    if not same:
        raise InvalidArgumentError(
            f"representative_data of input {number} (type {array.dtype}) holds values that {tensor.dtype} cannot hold"
        )
    return found


def _random_input(rng: np.random.Generator, shape: tuple, dtype: str) -> np.ndarray:
    if "int" in dtype:
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _computed(model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs of the model for the samples on which files are compared."""
    try:
        outputs = model(_structured(model, [a[:_SAMPLES] for a in inputs]), training=False)
    except Exception as error:  # Keras, TensorFlow and custom layers raise many classes
        raise InvalidArgumentError(f"{model.name!r} fails on representative_data: {first_line(error)}") from error
    expected = [np.asarray(keras.ops.cast(o, "float32")) for o in tree.flatten(outputs)]
    if not all(np.isfinite(o).all() for o in expected):
        raise ExportError(
            f"{model.name!r} itself computes NaN or infinite outputs for representative_data, so a file cannot be "
            "compared with it; check its weights and the data. No file was written"
        )
    return expected


def _convert(model: keras.Model, quantization: str | None, inputs: list[np.ndarray]) -> bytes:
    import tensorflow as tf

    specs = [
        tf.TensorSpec((1, *a.shape[1:]), t.dtype, name=f"input_{i}")
        for i, (a, t) in enumerate(zip(inputs, model.inputs, strict=True))
    ]

    def serve(*arrays):
        outputs = model(_structured(model, arrays), training=False)
        return {f"output_{i}": keras.ops.cast(o, "float32") for i, o in enumerate(tree.flatten(outputs))}

    with tempfile.TemporaryDirectory() as folder:
        try:
            archive = keras.export.ExportArchive()
            archive.track(model)
            archive.add_endpoint("serve", serve, input_signature=specs)
            with contextlib.redirect_stdout(io.StringIO()):  # Keras before 3.9 prints despite verbose=False
                archive.write_out(folder, verbose=False)
            if quantization == "int8":
                samples = {f"input_{i}": a[:CALIBRATION_SAMPLES] for i, a in enumerate(inputs)}
                conversion.save_arrays(Path(folder) / conversion.INPUTS, samples)
                _CONVERTER.convert(folder, quantization)
            else:
                conversion.convert(folder, quantization)
            return (Path(folder) / conversion.RESULT).read_bytes()
        except Exception as error:  # Keras and the converter raise many classes, with pages of text
            unsupported = [line.strip() for line in str(error).splitlines() if "ops:" in line]
            reason = "; ".join(unsupported) or first_line(error)
            raise ExportError(f"LiteRT cannot convert {model.name!r}: {reason}. No file was written") from error


def _structured(model: keras.Model, flat: Any) -> Any:
    """Packs a flat list of inputs into the structure that the model takes."""
    if isinstance(model, keras.Sequential):
        return flat[0]
    return tree.pack_sequence_as(model.input, list(flat))


def _compare(content: bytes, inputs: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    """Returns the largest and the mean error over some samples, relative to the range of the Keras outputs."""
    worst, means = 0.0, []
    for outputs, want in zip(run_file(content, [a[:_SAMPLES] for a in inputs]), expected, strict=True):
        error = np.abs(outputs - want) / max(float(np.ptp(want)), float(np.abs(want).max()), 1e-6)
        worst = max(worst, float(error.max()) if np.isfinite(error).all() else float("inf"))
        means.append(float(error.mean()))
    return worst, float(np.mean(means))


def run_file(content: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs of a LiteRT file that `export_litert` has written, which runs in a separate process.

    Args:
        content: the bytes of the file.
        inputs: an array of samples for each input.

    Raises:
        RuntimeError: LiteRT cannot run the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / conversion.RESULT).write_bytes(content)
        conversion.save_arrays(Path(folder) / conversion.INPUTS, {f"input_{i}": a for i, a in enumerate(inputs)})
        _CONVERTER.run(folder)
        with np.load(Path(folder) / conversion.OUTPUTS) as file:
            return [file[f"output_{j}"] for j in range(len(file.files))]

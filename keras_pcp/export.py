"""Writes LiteRT (TFLite) files, proves that they compute what the model computes, and times them."""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp import checks
from keras_pcp.errors import ExportError, InvalidArgumentError

# Largest error allowed, as a fraction of the range of the Keras outputs: at any element for the exact formats, on
# average for the quantized ones, where single values may be several quantization steps off.
_TOLERANCE = {None: 1e-4, "float16": 1e-2, "dynamic": 5e-2, "int8": 5e-2}
_SAMPLES = 16
_CALIBRATION_SAMPLES = 200


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
    quantization: str | None = None,
    representative_data: Any = None,
    tolerance: float | None = None,
) -> LiteRTFile:
    """Writes a model as LiteRT file for batches of one, runs the file and compares it with Keras.

    Args:
        model: a built model.
        path: file to write, usually `*.tflite`. It is only written if the comparison holds.
        quantization: None (float32), `"float16"` (weights), `"dynamic"` (int8 weights) or `"int8"` (weights and
            activations; inputs and outputs stay float32).
        representative_data: inputs (arrays, in the model's input structure, with a batch axis) for `"int8"` calibration
            and for the comparison. Without it the comparison uses normally distributed inputs.
        tolerance: largest allowed error as a fraction of the output range; None: 1e-4 for float32, 1e-2 for float16
            (at any element), 0.05 for the int8 formats (on average).

    Returns:
        A `LiteRTFile` with path, bytes and measured errors.

    Raises:
        ExportError: LiteRT cannot convert the model, or the file does not compute what the model computes; no file is
            left behind.
        InvalidArgumentError: an argument is out of range.

    Example:
        >>> import keras, keras_pcp, tempfile
        >>> x = keras.Input((8, 8, 1))
        >>> y = keras.layers.Conv2D(4, 3, activation="relu")(x)
        >>> model = keras.Model(x, keras.layers.GlobalAveragePooling2D()(y))
        >>> file = keras_pcp.export_litert(model, tempfile.mkdtemp() + "/small.tflite")
        >>> file.bytes > 0 and file.max_error < 1e-4
        True
    """
    path = Path(path)
    if quantization not in _TOLERANCE:
        raise InvalidArgumentError(f"quantization must be one of {list(_TOLERANCE)}, got {quantization!r}")
    if quantization == "int8" and representative_data is None:
        raise InvalidArgumentError("quantization='int8' needs representative_data: some real inputs for calibration")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"folder {path.parent} does not exist")
    inputs = _samples(model, representative_data)
    content = _convert(model, quantization, inputs)
    max_error, mean_error = _compare(model, content, inputs)
    limit = _TOLERANCE[quantization] if tolerance is None else tolerance
    judged = max_error if quantization in (None, "float16") else mean_error
    if not judged <= limit:
        raise ExportError(
            f"the LiteRT file of {model.name!r} (quantization={quantization}) differs from Keras by {judged:.2e} of the "
            f"output range (largest {max_error:.2e}, mean {mean_error:.2e}); allowed is {limit:.0e}. No file was written"
        )
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
    return LiteRTFile(path, len(content), max_error, mean_error)


def measure_latency(path: str | Path, *, runs: int = 50, threads: int = 1) -> float:
    """Returns the median time in milliseconds that LiteRT takes for one sample on this CPU.

    Args:
        path: a LiteRT file.
        runs: at least 1: number of timed runs; a fifth as many warm-up runs come first.
        threads: at least 1: number of threads.

    Raises:
        InvalidArgumentError: there is no such file, or `runs` or `threads` is out of range.

    Example:
        >>> import keras, keras_pcp, tempfile
        >>> x = keras.Input((8, 8, 3))
        >>> model = keras.Model(x, keras.layers.Conv2D(4, 3)(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = keras_pcp.export_litert(model, folder + "/model.tflite")
        ...     keras_pcp.measure_latency(file.path, runs=10) > 0
        True
    """
    runs, threads = checks.count("runs", runs), checks.count("threads", threads)
    checks.instance("path", path, str | Path, "the path of a LiteRT file")
    if not Path(path).is_file():
        raise InvalidArgumentError(f"there is no file {path}; export_litert writes one")
    interpreter = _interpreter(Path(path).read_bytes(), threads)
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    times = []
    for i in range(runs + runs // 5):
        started = time.perf_counter()
        interpreter.invoke()
        if i >= runs // 5:
            times.append(time.perf_counter() - started)
    return float(np.median(times) * 1e3)


def _samples(model: keras.Model, data: Any) -> list[np.ndarray]:
    """Returns a flat list of input arrays."""
    specs = model.inputs
    if data is None:
        if any(None in t.shape[1:] for t in specs):
            raise InvalidArgumentError(
                f"input shape {model.input_shape} has unknown sizes; pass representative_data with the wanted size"
            )
        rng = np.random.default_rng(0)
        return [_random_input(rng, (_SAMPLES, *t.shape[1:]), t.dtype) for t in specs]
    arrays = [np.asarray(a) for a in tree.flatten(data)]
    if len(arrays) != len(specs) or any(
        a.ndim != len(t.shape) or not len(a) for a, t in zip(arrays, specs, strict=True)
    ):
        raise InvalidArgumentError(
            f"representative_data has shapes {[a.shape for a in arrays]}, the model takes "
            f"{[tuple(t.shape) for t in specs]} (batch axis first, at least one sample, labels left out)"
        )
    return [a.astype(t.dtype) for a, t in zip(arrays, specs, strict=True)]


def _random_input(rng: np.random.Generator, shape: tuple, dtype: str) -> np.ndarray:
    if "int" in dtype:
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


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
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, input_signature=specs)
        with contextlib.redirect_stdout(io.StringIO()):  # Keras before 3.9 prints in spite of verbose=False
            archive.write_out(folder, verbose=False)
        try:
            return _converted(tf.lite.TFLiteConverter.from_saved_model(folder), quantization, inputs)
        except Exception as error:  # the converter raises many classes, with pages of text
            unsupported = [line.strip() for line in str(error).splitlines() if "ops:" in line]
            reason = "; ".join(unsupported) or str(error).strip().partition("\n")[0][:300]
            raise ExportError(f"LiteRT cannot convert {model.name!r}: {reason}. No file was written") from error


def _converted(converter: Any, quantization: str | None, inputs: list[np.ndarray]) -> bytes:
    import tensorflow as tf

    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]

        def calibration() -> Iterator[dict[str, np.ndarray]]:
            for i in range(min(_CALIBRATION_SAMPLES, len(inputs[0]))):
                yield {f"input_{k}": a[i : i + 1] for k, a in enumerate(inputs)}

        converter.representative_dataset = calibration
    return converter.convert()


def _structured(model: keras.Model, flat: Any) -> Any:
    """Packs flat inputs into the structure that the model takes."""
    if isinstance(model, keras.Sequential):
        return flat[0]
    return tree.pack_sequence_as(model.input, list(flat))


def _compare(model: keras.Model, content: bytes, inputs: list[np.ndarray]) -> tuple[float, float]:
    """Returns the largest and the mean error over some samples, relative to the range of the Keras outputs."""
    inputs = [a[:_SAMPLES] for a in inputs]
    expected = [np.asarray(o, "float32") for o in tree.flatten(model(_structured(model, inputs), training=False))]
    interpreter = _interpreter(content, 1)  # kept: the runner does not keep the file's content alive
    runner = interpreter.get_signature_runner()
    worst, means = 0.0, []
    for i in range(len(inputs[0])):
        found = runner(**{f"input_{k}": a[i : i + 1] for k, a in enumerate(inputs)})
        for j, want in enumerate(expected):
            scale = max(float(np.ptp(want)), float(np.abs(want).max()), 1e-6)
            error = np.abs(found[f"output_{j}"] - want[i : i + 1]) / scale
            worst = max(worst, float(error.max()) if np.isfinite(error).all() else float("inf"))
            means.append(float(error.mean()))
    return worst, float(np.mean(means))


def _interpreter(content: bytes, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter

"""Measures the latency of LiteRT files on this CPU: of one, or of several in turn, so that all see the same machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import checks
from keras_pcp.support.text import first_line


@dataclass(frozen=True)
class Latency:
    """Times of one sample, in milliseconds: the median of the runs, and the time that 90 % of them do not exceed."""

    median: float
    percentile_90: float


def measure_latency(path: str | Path, *, runs: int = 50, threads: int = 1) -> float:
    """Returns the median time that LiteRT takes for one sample on this CPU, in milliseconds.

    Args:
        path: a LiteRT file.
        runs: number of timed runs, at least 1. A fifth as many warm-up runs come first.
        threads: number of threads, at least 1.

    Raises:
        InvalidArgumentError: there is no such file, LiteRT cannot run it, or `runs` or `threads` is out of range.

    Example:
        >>> import keras, keras_pcp, tempfile
        >>> x = keras.Input((8, 8, 3))
        >>> model = keras.Model(x, keras.layers.Conv2D(4, 3)(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = keras_pcp.export_litert(model, folder + "/model.tflite")
        ...     keras_pcp.measure_latency(file.path, runs=10) > 0
        True
    """
    return compare_latency([path], runs=runs, threads=threads)[0].median


def compare_latency(paths: Sequence[str | Path], *, runs: int = 50, threads: int = 1) -> list[Latency]:
    """Returns the latency of each of some LiteRT files, which run in turn, a sample each.

    A load of the machine from outside hits all of them alike, so compare their ratios. Arguments and errors are those of
    `measure_latency`.
    """
    runs, threads = checks.count("runs", runs), checks.count("threads", threads)
    interpreters = [_interpreter(path, threads) for path in paths]
    times = np.zeros((runs + runs // 5, len(interpreters)))
    for row in times:
        for i, (path, interpreter) in enumerate(zip(paths, interpreters, strict=True)):
            started = time.perf_counter()
            try:
                interpreter.invoke()
            except (RuntimeError, ValueError) as error:
                raise _unusable(path, error) from error
            row[i] = 1e3 * (time.perf_counter() - started)
    timed = times[runs // 5 :]
    return [Latency(float(np.median(t)), float(np.percentile(t, 90))) for t in timed.T]


def _interpreter(path: str | Path, threads: int) -> Any:
    """Returns an interpreter of a file, with zeros as inputs."""
    from ai_edge_litert.interpreter import Interpreter

    checks.instance("path", path, str | Path, "the path of a LiteRT file")
    if not Path(path).is_file():
        raise InvalidArgumentError(f"there is no file {path}; export_litert writes one")
    try:
        interpreter = Interpreter(model_content=Path(path).read_bytes(), num_threads=threads)
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    except (OSError, RuntimeError, ValueError) as error:
        raise _unusable(path, error) from error
    return interpreter


def _unusable(path: str | Path, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"LiteRT cannot run {path}: {first_line(error)}; export_litert writes files that it can run"
    )

"""Converts a SavedModel to LiteRT, here or in a separate process, and runs the file there.

The quantizer of LiteRT kills its process (segmentation fault) if a value overflows in calibration, and the runtime kills it
(abort) on some files. So both run in another process. This file is also the program of that process, so it imports nothing
from keras_pcp.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from os import _exit as end_process  # public in spite of its name
from pathlib import Path
from typing import IO

import numpy as np

INPUTS, RESULT, OUTPUTS = "inputs.npz", "model.tflite", "outputs.npz"  # in the folder of a request
_IDLE_SECONDS = 60  # then the process ends and frees its memory, some hundred megabytes


def convert(folder: str, quantization: str | None) -> None:
    """Writes the LiteRT file `RESULT` into the folder of a SavedModel. For int8, that folder holds the samples `INPUTS`."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        with np.load(Path(folder) / INPUTS) as file:
            inputs = dict(file)

        def calibration() -> Iterator[dict[str, np.ndarray]]:
            for i in range(len(next(iter(inputs.values())))):
                yield {name: array[i : i + 1] for name, array in inputs.items()}

        converter.representative_dataset = calibration
    (Path(folder) / RESULT).write_bytes(converter.convert())


def run(folder: str) -> None:
    """Runs the LiteRT file `RESULT` in a folder on the samples `INPUTS`, one by one, and writes `OUTPUTS`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(Path(folder) / RESULT), num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    with np.load(Path(folder) / INPUTS) as file:
        inputs = dict(file)
    found = [
        runner(**{name: array[i : i + 1] for name, array in inputs.items()})
        for i in range(len(next(iter(inputs.values()))))
    ]
    save_arrays(Path(folder) / OUTPUTS, {name: np.concatenate([f[name] for f in found]) for name in found[0]})


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes named arrays to a file that `np.load` reads."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # NumPy's types suppose that any name may be allow_pickle


_OPERATIONS: dict[str, Callable[..., None]] = {"convert": convert, "run": run}


class Converter:
    """A process that converts and runs files. It starts at first use, is reused, and ends with this process or when idle.

    It neither imports the main module of this process nor shares its interrupts, and ends when this process is gone.
    """

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.owner = 0
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def convert(self, folder: str, quantization: str | None) -> None:
        """Runs the function `convert` in the process.

        Raises:
            RuntimeError: the conversion failed, or the process ended.
        """
        self._request(["convert", folder, quantization])

    def run(self, folder: str) -> None:
        """Runs the function `run` in the process; raises RuntimeError as `convert` does."""
        self._request(["run", folder])

    def _request(self, request: list) -> None:
        with self.lock:
            answer, code = self._ask(request)
            if not answer and code == 0:  # it was idle and ended just now
                answer, code = self._ask(request)
        if not answer:
            raise RuntimeError(f"its process {_ending(code)}")
        if error := json.loads(answer):
            raise RuntimeError(error)

    def stop(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is not None:
            for pipe in _pipes(process):
                pipe.close()
            if self.owner == os.getpid():  # a fork must not end the process of its parent
                process.kill()
                process.wait()

    def _ask(self, request: list) -> tuple[str, int | None]:
        """Returns the line that answers a request, or the exit code of the process if it gave no answer."""
        process = self._running()
        requests, answers = _pipes(process)
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            answer = answers.readline().decode()
            code = None if answer else process.wait()
        except BrokenPipeError:
            answer, code = "", process.wait()
        except BaseException:  # an interrupt: the answer would be mistaken for that to the next request
            self.stop()
            raise
        return answer, code

    def _running(self) -> subprocess.Popen:
        if self.process is None or self.process.poll() is not None or self.owner != os.getpid():
            self.stop()
            path = [str(entry) for entry in sys.path]
            program = f"import runpy, sys; sys.path[:] = {path}; runpy.run_path({__file__!r}, run_name='__main__')"
            self.owner = os.getpid()
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            )
        return self.process


def _pipes(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    """Returns the standard input and output of a process that was started with pipes for both."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    reason = ", usually because memory ran out" if code == -getattr(signal, "SIGKILL", 0) else ""
    return f"crashed ({signal.Signals(-code).name}{reason})"


def _serve() -> None:
    """Answers each request on standard input with a line on standard output: null, or the error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    idle = None
    for line in iter(sys.stdin.readline, ""):
        if idle is not None:
            idle.cancel()
        try:
            operation, *arguments = json.loads(line)
            _OPERATIONS[operation](*arguments)
            error = None
        except Exception as e:
            error = str(e) or type(e).__name__
        print(json.dumps(error), file=answers, flush=True)
        idle = threading.Timer(_IDLE_SECONDS, end_process, (0,))
        idle.daemon = True
        idle.start()


if __name__ == "__main__":
    _serve()

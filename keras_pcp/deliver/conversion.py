"""Converts a SavedModel to LiteRT, here or in a process of its own, and runs the file there.

The quantizer of LiteRT kills its process (a segmentation fault) where a value overflows in calibration, and its runtime does
so (an abort) on some files, so they run in another one. This file is also the program of that process, and so imports
nothing of keras_pcp.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from os import _exit as end_process  # public in spite of its name
from pathlib import Path

import numpy as np

INPUTS, RESULT, OUTPUTS = "inputs.npz", "model.tflite", "outputs.npz"  # in the folder of a request
_IDLE_SECONDS = 60  # then the process ends, and with it the use of its memory, some hundred megabytes


def convert(folder: str, quantization: str | None) -> None:
    """Writes the LiteRT file `RESULT` into the folder of a SavedModel; for int8, `INPUTS` in it hold the samples."""
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
    np.savez(Path(folder) / OUTPUTS, **{name: np.concatenate([f[name] for f in found]) for name in found[0]})


_OPERATIONS = {"convert": convert, "run": run}


class Converter:
    """A process that converts and runs: started when first needed, used again, ended with this one or when idle for long.

    It neither imports the main module of this process nor shares its interrupts, and ends when this process is gone.
    """

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.owner = 0
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def convert(self, folder: str, quantization: str | None) -> None:
        """Does the same as the function `convert`.

        Raises:
            RuntimeError: the conversion failed, or the process came to an end.
        """
        self._request(["convert", folder, quantization])

    def run(self, folder: str) -> None:
        """Does the same as the function `run`, and raises RuntimeError likewise."""
        self._request(["run", folder])

    def _request(self, request: list) -> None:
        with self.lock:
            answer, code = self._ask(request)
            if not answer and code == 0:  # it ended at this moment because it had been idle
                answer, code = self._ask(request)
        if not answer:
            raise RuntimeError(f"its process {_ending(code)}")
        if error := json.loads(answer):
            raise RuntimeError(error)

    def stop(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            if self.owner == os.getpid():  # not that of the process that this one was forked from
                process.kill()
                process.wait()

    def _ask(self, request: list) -> tuple[str, int | None]:
        """Returns the line that answers a request, or the exit code of the process that gave none."""
        process = self._running()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            answer = process.stdout.readline().decode()
            code = None if answer else process.wait()
        except BrokenPipeError:
            answer, code = "", process.wait()
        except BaseException:  # an interrupt: its answer would be taken for that to the next request
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


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    reason = ", usually because memory ran out" if code == -getattr(signal, "SIGKILL", 0) else ""
    return f"crashed ({signal.Signals(-code).name}{reason})"


def _serve() -> None:
    """Answers each request on standard input with a line on standard output: null, or what went wrong."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
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

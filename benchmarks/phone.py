"""What a pruned network is worth on a phone: accuracy, size and latency of its LiteRT file, beside the unpruned one.

    python benchmarks/phone.py --model lite0_cifar10.keras --pruned lite0_half.keras --data cifar10 --held-out test \
        --out benchmarks/results/phone.jsonl

Both networks are exported as float32 and as int8; training images calibrate. The accuracy is that of the files, on the test
images. Latency is the time of one image on one thread: the files of a format run in turn, an image each, so that both
see the same machine. The row has medians and 90th percentiles, in milliseconds.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from rows import write
from trained_model import accuracy, add_arguments, opened, prepared

import keras_pcp


class File:
    """A LiteRT file that is run image by image."""

    def __init__(self, path: Path):
        self.bytes = path.stat().st_size
        self.interpreter = Interpreter(str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        self.given, self.found = (d[0]["index"] for d in (self.details("input"), self.details("output")))

    def details(self, kind: str) -> list[dict]:
        return getattr(self.interpreter, f"get_{kind}_details")()

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the output for one image, and how many milliseconds it took."""
        self.interpreter.set_tensor(self.given, image[None])
        started = time.perf_counter()
        self.interpreter.invoke()
        seconds = time.perf_counter() - started
        return self.interpreter.get_tensor(self.found)[0], seconds * 1e3


def compared(files: list[File], x: np.ndarray, y: np.ndarray, warm_up: int = 50) -> list[dict]:
    """Runs the images through all files in turn; returns accuracy, size and latency of each."""
    for image in x[:warm_up]:
        for file in files:
            file.run(image)
    right, times = np.zeros(len(files)), []
    for image, label in zip(x, y, strict=True):
        found = [file.run(image) for file in files]
        right += [output.argmax() == label for output, _ in found]
        times.append([milliseconds for _, milliseconds in found])
    middle, high = np.median(times, axis=0), np.percentile(times, 90, axis=0)
    return [
        {"bytes": f.bytes, "acc": float(r / len(x)), "ms": round(float(m), 3), "ms_90": round(float(h), 3)}
        for f, r, m, h in zip(files, right, middle, high, strict=True)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--pruned", required=True, help="a .keras file of the same network, pruned")
    parser.add_argument("--calibration", type=int, default=200, help="training images that int8 is calibrated on")
    args = parser.parse_args()
    (x, _), _, (x_test, y_test) = prepared(args)
    x_test = np.asarray(x_test, "float32")
    models = {"unpruned": opened(args), "pruned": keras.models.load_model(args.pruned, compile=False)}
    full = keras_pcp.count_cost(models["unpruned"]).macs
    of_keras = {name: accuracy(model, x_test, y_test) for name, model in models.items()}
    for quantization in (None, "int8"):
        with tempfile.TemporaryDirectory() as folder:
            files, errors = [], []
            for name, model in models.items():
                path = Path(folder) / f"{name}.tflite"
                data = np.asarray(x[: args.calibration], "float32")
                written = keras_pcp.export_litert(model, path, quantization=quantization, representative_data=data)
                files.append(File(path))
                errors.append(written.max_error)
            found = compared(files, x_test, y_test)
        for (name, model), error, row in zip(models.items(), errors, found, strict=True):
            same = {"suite": "phone", "model": Path(args.model).stem, "data": args.data, "network": name}
            same |= {"format": quantization or "float32", "images": len(x_test)}
            share = {"macs": round(keras_pcp.count_cost(model).macs / full, 4)}
            beside = {"acc_keras": of_keras[name], "max_error": error, "speedup": round(found[0]["ms"] / row["ms"], 3)}
            write(same | share | row | beside | {"command": "python " + " ".join(sys.argv)}, args.out)


if __name__ == "__main__":
    main()

"""How long a user of `ProgressivePruning` sees nothing: until the first output of `fit`, and at most between two outputs.

    python benchmarks/silence.py --out benchmarks/results/silence.jsonl

Trains a MobileNetV2 with random weights on random images, with validation data, in a process whose output is a pipe. The
row has the seconds from the call of `fit` to the first output, the longest silences, and what was printed
just before each.
"""

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path

from rows import write

BEGIN, END = "fit begins", "fit has ended"


def train(images: int, size: int, epochs: int) -> None:
    """Prunes in a `fit` that prints as usual."""
    import keras
    import numpy as np

    import keras_pcp

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (images, size, size, 3)).astype("float32"), rng.integers(0, 10, images)
    model = keras.applications.MobileNetV2((size, size, 3), weights=None, classes=10)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    val = x[:256], y[:256]
    pruning = keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=val)
    print(BEGIN, flush=True)
    model.fit(x, y, batch_size=32, epochs=epochs, validation_data=val, callbacks=[pruning], verbose=1)
    print(END, flush=True)


def watched(args: argparse.Namespace) -> dict:
    """Runs the training in another process; returns when it printed."""
    options = [f"--{name}={getattr(args, name)}" for name in ("images", "size", "epochs")]
    command = [sys.executable, "-u", __file__, "--train", *options]
    text, said = "", []  # (time, length of the text)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while piece := process.stdout.read1():
            text += piece.decode(errors="replace").replace("\x08", "")
            said.append((time.monotonic(), len(text)))
    if process.returncode or END not in text:
        raise RuntimeError(f"the training failed:\n{text[-3000:]}")
    begun, ended = text.index(BEGIN) + len(BEGIN) + 1, text.index(END)
    first = next(i for i, (_, length) in enumerate(said) if length >= begun)
    last = next(i for i, (_, length) in enumerate(said) if length >= ended)
    said = said[first : last + 1]
    waits = [(b[0] - a[0], text[max(begun, a[1] - 60) : a[1]].strip()) for a, b in itertools.pairwise(said)]
    longest = sorted(waits, reverse=True)[:5]
    return {
        "first_output": round(waits[0][0], 2),
        "silences": [[round(seconds, 1), before] for seconds, before in longest],
        "seconds": round(said[-1][0] - said[0][0], 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", action="store_true", help="train, unwatched")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.train:
        train(args.images, args.size, args.epochs)
    else:
        same = {"suite": "silence", "model": "MobileNetV2", "images": args.images, "size": args.size}
        write(same | watched(args) | {"command": "python " + " ".join(sys.argv)}, args.out)


if __name__ == "__main__":
    main()

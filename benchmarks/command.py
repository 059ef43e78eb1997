"""What `keras-pcp` says to help, typos and bad input, and how long it takes to say it.

    python benchmarks/command.py --out benchmarks/results/command.jsonl

Each case is a process of its own. A row has its exit code, its seconds, the last line on stderr, and how many lines
there are not from the command itself.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from rows import write

L = keras.layers
LIMIT = ["--max-macs", "0.5"]
# What a user types: {name: arguments}. The files are made by `prepared`.
CASES = {
    "help": ["--help"],
    "help of a command": ["prune", "--help"],
    "version": ["--version"],
    "unknown command": ["pruned", "a.keras"],
    "unknown option": ["prune", "a.keras", "b.keras", "--max-mcas", "0.5"],
    "no such model": ["inspect", "none.keras"],
    "no Keras file": ["inspect", "text.keras"],
    "no limit": ["prune", "a.keras", "b.keras"],
    "limit above 1": ["prune", "a.keras", "b.keras", "--max-macs", "1.5"],
    "limit out of reach": ["prune", "a.keras", "b.keras", "--max-macs", "0.0001"],
    "unknown layer to freeze": ["prune", "a.keras", "b.keras", *LIMIT, "--frozen-layers", "conv9"],
    "no such data": ["prune", "a.keras", "b.keras", *LIMIT, "--data", "none.npz"],
    "pixels not known": ["prune", "a.keras", "b.keras", *LIMIT, "--data", "folder"],
    "labels that do not fit": ["prune", "a.keras", "b.keras", *LIMIT, "--data", "labels.npz"],
    "no such folder for the result": ["prune", "a.keras", "none/b.keras", *LIMIT],
    "no LiteRT file": ["bench", "text.keras"],
}


def prepared(folder: Path) -> None:
    """Writes a model and files that do not fit it."""
    i = keras.Input((8, 8, 3))
    x = L.ReLU()(L.Conv2D(8, 3, name="conv")(i))
    keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(x)), name="tiny").save(folder / "a.keras")
    (folder / "text.keras").write_text("a text")
    (folder / "folder").mkdir()
    np.savez(folder / "labels.npz", x=np.zeros((40, 8, 8, 3)), y=np.arange(40))


def tried(arguments: list[str], folder: Path) -> dict:
    """Runs the command in a folder; returns what it did."""
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "keras_pcp", *arguments], capture_output=True, text=True, env=env, cwd=folder
    )
    seconds = time.perf_counter() - started
    lines = done.stderr.splitlines()
    own = [line for line in lines if line.startswith(("keras-pcp", "usage: keras-pcp", " "))]
    return {"code": done.returncode, "seconds": round(seconds, 2), "foreign": len(lines) - len(own), "says": lines[-1:]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared(Path(folder))
        for name, arguments in CASES.items():
            row = {"suite": "command", "case": name, "arguments": " ".join(arguments), **tried(arguments, Path(folder))}
            write(row | {"command": "python " + " ".join(sys.argv)}, args.out)


if __name__ == "__main__":
    main()

"""Prunes every model of keras.applications by `AdaptivePruning` in a `fit` of three steps, one JSON line a model.

    python benchmarks/fit_applications.py --out benchmarks/results/fit_applications.jsonl   # resumable; an hour on two cores

Weights and images are random. A row says whether the limit was met, whether the loss and the outputs stayed finite, at how
many moments the model was cut, and how much of the outputs' energy a cut lost without and with the correction, as a mean
over the layers. The penalty was part of the loss where channels were marked before they went.
"""

import argparse
import gc
import sys
import time
from pathlib import Path

import keras
import numpy as np
from applications import SIZES, build
from rows import read, write

import keras_pcp

STEPS = 3


def check(name: str, max_macs: float) -> dict:
    """Trains and prunes a model; returns the row."""
    model = build(name, small=True)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4 * STEPS, *model.input.shape[1:])).astype("float32")
    y = rng.integers(0, model.output.shape[-1], len(x))
    before = keras_pcp.count_cost(model)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9, clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruning = keras_pcp.AdaptivePruning(max_macs=max_macs, begin=0.0, end=1.0)
    started = time.perf_counter()
    history = model.fit(x, y, batch_size=4, verbose=0, callbacks=[pruning])
    seconds, report, after = time.perf_counter() - started, pruning.report, keras_pcp.count_cost(model)
    errors = np.array([cut.error for cut in report.cuts if cut.error])
    return {
        "suite": "fit_applications",
        "model": name,
        "max_macs": max_macs,
        "reached": report.reached,
        "macs": round(after.macs / before.macs, 4),
        "params": round(after.params / before.params, 4),
        "cuts": len(report.shrinks),
        "error_plain": round(float(errors[:, 0].mean()), 4) if len(errors) else None,
        "error_corrected": round(float(errors[:, 1].mean()), 4) if len(errors) else None,
        "finite": bool(np.isfinite([*history.history["loss"], *model.predict(x, verbose=0).ravel()]).all()),
        "groups": len(report.widths),
        "seconds": round(seconds, 1),
        "command": "python " + " ".join(sys.argv),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SIZES))
    parser.add_argument("--max-macs", type=float, default=0.7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    done = {row["model"] for row in read(args.out)}
    for name in args.models.split(","):
        if name not in done:
            write(check(name, args.max_macs), args.out)
            keras.backend.clear_session()
            gc.collect()


if __name__ == "__main__":
    main()

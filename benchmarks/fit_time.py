"""Times `fit` with pruning against the same `fit` without, interleaved, on a trained Keras classifier.

    python benchmarks/fit_time.py --model resnet20_fashion.keras --data fashion_mnist --mean 0.2860 --std 0.3530 \
        --epochs 3 --repeats 2 --out benchmarks/results/fit_time.jsonl

Prints one JSON line a repeat: seconds of both, their ratio, the callback's own time by kind, and the peak memory of both.
Each `fit` runs in a process of its own, so that the peak is its own. It counts all that is resident in the process: the
libraries, the data and the model.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import keras
from rows import write
from trained_model import add_arguments, prepared

import keras_pcp


def timed_fit(args: argparse.Namespace, repeat: int, method: str | None) -> dict:
    """Loads, compiles and trains, with or without pruning; returns what was measured."""
    train, val, _ = prepared(args)
    keras.utils.set_random_seed(repeat)
    model = keras.models.load_model(args.model)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    options, pruning = {"max_macs": args.max_macs, "begin": args.begin, "end": args.end}, None
    if method == "progressive":
        strategy = keras_pcp.strategies.Progressive(multiple_of=args.multiple_of)
        pruning = keras_pcp.ProgressivePruning(strategy=strategy, validation_data=val, **options)
    elif method == "adaptive":
        strategy = keras_pcp.strategies.Adaptive(multiple_of=args.multiple_of)
        pruning = keras_pcp.AdaptivePruning(strategy=strategy, **options)
    full, started = keras_pcp.count_cost(model).macs, time.perf_counter()
    model.fit(*train, batch_size=128, epochs=args.epochs, verbose=0, callbacks=[pruning] if pruning else [])
    found = {"seconds": time.perf_counter() - started, "images": len(train[0]) * args.epochs}
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if pruning:
        report = pruning.report
        found |= {"macs": keras_pcp.count_cost(model).macs / full, "kinds": dict(report.seconds)}
        found |= {"rounds": len(report.rounds), "shrinks": len(report.shrinks)}
    return found


def alone(*arguments) -> dict:
    """Runs `timed_fit` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(timed_fit, *arguments).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--method", choices=("progressive", "adaptive"), default="progressive")
    parser.add_argument("--max-macs", type=float, default=0.5)
    parser.add_argument("--multiple-of", type=int, default=1, help="widths are rounded to a multiple of it")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    for repeat in range(args.repeats):
        plain, pruned = alone(args, repeat, None), alone(args, repeat, args.method)
        row = {
            "suite": "fit_time",
            "model": Path(args.model).stem,
            "data": args.data,
            "method": args.method,
            "multiple_of": args.multiple_of,
            "repeat": repeat,
            "epochs": args.epochs,
            "images": plain["images"],
            "plain_seconds": round(plain["seconds"], 1),
            "pruning_seconds": round(pruned["seconds"], 1),
            "ratio": round(pruned["seconds"] / plain["seconds"], 4),
            "macs": round(pruned["macs"], 4),
            **{f"{kind}_seconds": round(value, 2) for kind, value in pruned["kinds"].items()},
            "rounds": pruned["rounds"],
            "shrinks": pruned["shrinks"],
            "plain_peak_mib": round(plain["peak"]),
            "pruning_peak_mib": round(pruned["peak"]),
            "peak_ratio": round(pruned["peak"] / plain["peak"], 4),
            "command": "python " + " ".join(sys.argv),
        }
        write(row, args.out)


if __name__ == "__main__":
    main()

"""Times `fit` with pruning against the same `fit` without, interleaved, on a trained Keras classifier.

    python benchmarks/fit_time.py --model resnet20_fashion.keras --data fashion_mnist --mean 0.2860 --std 0.3530 \
        --epochs 3 --repeats 2 --out benchmarks/results/fit_time.jsonl

Prints one JSON line a repeat: seconds of both, their ratio, and the callback's own time by kind.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
from rows import write
from trained_model import add_arguments, prepared

import keras_pcp


def timed_fit(path, train, epochs, callbacks):
    model = keras.models.load_model(path)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    started = time.perf_counter()
    model.fit(*train, batch_size=128, epochs=epochs, verbose=0, callbacks=callbacks)
    return time.perf_counter() - started, model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--method", choices=("progressive", "adaptive"), default="progressive")
    parser.add_argument("--max-macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    train, val, _ = prepared(args)
    for repeat in range(args.repeats):
        keras.utils.set_random_seed(repeat)
        plain, full = timed_fit(args.model, train, args.epochs, [])
        options = {"max_macs": args.max_macs, "begin": args.begin, "end": args.end}
        if args.method == "progressive":
            pruning = keras_pcp.ProgressivePruning(validation_data=val, **options)
        else:
            pruning = keras_pcp.AdaptivePruning(**options)
        pruned, model = timed_fit(args.model, train, args.epochs, [pruning])
        row = {
            "suite": "fit_time",
            "model": Path(args.model).stem,
            "data": args.data,
            "method": args.method,
            "repeat": repeat,
            "epochs": args.epochs,
            "images": len(train[0]) * args.epochs,
            "plain_seconds": round(plain, 1),
            "pruning_seconds": round(pruned, 1),
            "ratio": round(pruned / plain, 4),
            "macs": round(keras_pcp.count_cost(model).macs / keras_pcp.count_cost(full).macs, 4),
            **{f"{kind}_seconds": round(value, 2) for kind, value in pruning.report.seconds.items()},
            "rounds": len(pruning.report.rounds),
            "shrinks": len(pruning.report.shrinks),
            "command": "python " + " ".join(sys.argv),
        }
        write(row, args.out)


if __name__ == "__main__":
    main()

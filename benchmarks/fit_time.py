"""Times `fit` with pruning against the same `fit` without, interleaved, on a trained Keras classifier.

    python benchmarks/fit_time.py --model resnet20_fashion.keras --data fashion_mnist --mean 0.2860 --std 0.3530 \
        --epochs 3 --repeats 2 --out benchmarks/results/fit_time.jsonl

Prints one JSON line a repeat: seconds of both, their ratio, the callback's own time by kind, and the peak memory of both.
Each `fit` runs in a process of its own, so that the peak is its own. It counts all that is resident in the process: the
libraries, the data and the model.

With `--in-turn`, there is one `fit`, with pruning. At every tenth step an unpruned copy takes a step, too, which is timed.
The time of an unpruned `fit` is the mean of these times the number of steps. So both see the same load of the machine.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rows import write
from trained_model import add_arguments, prepared, untuned

import keras_pcp


def compiled(args: argparse.Namespace) -> keras.Model:
    """Loads and compiles the model."""
    model = keras.models.load_model(args.model)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class InTurn(keras.callbacks.Callback):
    """Lets an unpruned model take a step at every tenth step of a `fit`, and times it."""

    def __init__(self, unpruned, x, y):
        super().__init__()
        self.unpruned, self.batch, self.seconds = unpruned, (x, y), []
        unpruned.train_on_batch(x, y)

    def on_train_batch_begin(self, batch, logs=None):
        if batch % 10 == 0:
            started = time.perf_counter()
            self.unpruned.train_on_batch(*self.batch)
            self.seconds.append(time.perf_counter() - started)


def timed_fit(args: argparse.Namespace, repeat: int, method: str | None) -> dict:
    """Trains, with or without pruning; returns what was measured."""
    train, val, _ = prepared(args)
    train = tuple(array[: args.images] for array in train)
    keras.utils.set_random_seed(repeat)
    model, callbacks = compiled(args), []
    options = {"max_macs": args.max_macs, "begin": args.begin, "end": args.end}
    if method == "progressive":
        strategy = keras_pcp.strategies.Progressive(multiple_of=args.multiple_of)
        options |= {"measuring": keras_pcp.Measuring(samples=args.samples, monitor=args.monitor)}
        options |= {"refit_data": tuple(array[:2000] for array in train)} if args.refit else {}
        callbacks.append(keras_pcp.ProgressivePruning(strategy=strategy, validation_data=val, **options))
    elif method == "adaptive":
        strategy = keras_pcp.strategies.Adaptive(multiple_of=args.multiple_of)
        callbacks.append(keras_pcp.AdaptivePruning(strategy=strategy, **options))
    if args.in_turn:
        callbacks.append(InTurn(compiled(args), *(array[: args.batch] for array in train)))
    shuffled = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=repeat)
    images = untuned(shuffled.batch(args.batch).prefetch(2))
    full, started = keras_pcp.count_cost(model).macs, time.perf_counter()
    model.fit(images, epochs=args.epochs, verbose=0, callbacks=callbacks)
    found = {"seconds": time.perf_counter() - started, "images": len(train[0]) * args.epochs}
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if args.in_turn:
        beside = callbacks[-1].seconds
        found["seconds"] -= sum(beside)
        found["unpruned_seconds"] = float(np.mean(beside)) * -(-len(train[0]) // args.batch) * args.epochs
    if method:
        report = callbacks[0].report
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
    parser.add_argument("--samples", type=int, default=1024, help="validation samples for attempts")
    parser.add_argument("--monitor", help="what attempts are compared by; default: the metric")
    parser.add_argument("--refit", action="store_true", help="refit readers of pruned channels, in attempts, too")
    parser.add_argument("--images", type=int, help="training images to use; default: all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--in-turn", action="store_true", help="time steps of both in one fit")
    args = parser.parse_args()
    for repeat in range(args.repeats):
        if args.in_turn:
            pruned = timed_fit(args, repeat, args.method)
            plain = pruned | {"seconds": pruned["unpruned_seconds"]}
        else:
            plain, pruned = alone(args, repeat, None), alone(args, repeat, args.method)
        row = {
            "suite": "fit_time",
            "model": Path(args.model).stem,
            "data": args.data,
            "method": args.method,
            "multiple_of": args.multiple_of,
            "refit": args.refit,
            "monitor": args.monitor or "metric",
            "samples": args.samples,
            "in_turn": args.in_turn,
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
        }
        if not args.in_turn:
            row |= {"plain_peak_mib": round(plain["peak"]), "pruning_peak_mib": round(pruned["peak"])}
            row["peak_ratio"] = round(pruned["peak"] / plain["peak"], 4)
        row["command"] = "python " + " ".join(sys.argv)
        write(row, args.out)


if __name__ == "__main__":
    main()

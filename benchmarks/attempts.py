"""Fast attempts against exact ones: the same groups, at which cost, and how the cost grows with the number of groups.

    python benchmarks/attempts.py --model resnet20_fashion.keras --data fashion_mnist --mean 0.2860 --std 0.3530 \
        --samples 5000 --out benchmarks/results/attempts.jsonl
    python benchmarks/attempts.py --model resnet20,resnet56,resnet110 --data mnist --rounds 4 \
        --out benchmarks/results/attempts.jsonl

A search without training follows the choices of the exact way. In every round, the fast way chooses, too, from the same
model and with its own memory of earlier rounds. Passes are multiply-accumulates in units of one pass of the unpruned model
over all samples. So a round with n attempts takes n + 1 passes the exact way, and about half a pass to re-estimate batch
normalization. `--memory` compares the peak memory of a `fit` with pruning with that of a `fit` without. `--alone` runs
rounds of the fast way only, which go on from its own choices, and gives the passes of each.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
from rows import write
from trained_model import add_arguments, batches, opened, prepared

import keras_pcp
from keras_pcp.fit.observation import Moment
from keras_pcp.fit.run import Run
from keras_pcp.select.problem import Limits, Problem

L = keras.layers
SIGNALS = {"metric": None, "loss": "loss"}  # what attempts are compared by, as a monitor


def resnet(depth: int, width: int, shape: tuple) -> keras.Model:
    """Builds a residual network for small images (He et al. 2016) of 6n + 2 layers."""
    i = keras.Input(shape)

    def block(x, filters, strides):
        y = L.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        y = L.ReLU()(L.BatchNormalization()(y))
        y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        if strides > 1:
            x = L.BatchNormalization()(L.Conv2D(filters, 1, strides, use_bias=False)(x))
        return L.ReLU()(L.Add()([x, y]))

    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, padding="same", use_bias=False)(i)))
    for stage in range(3):
        for number in range((depth - 2) // 6):
            x = block(x, width * 2**stage, 2 if stage and not number else 1)
    return keras.Model(i, L.Dense(10)(L.GlobalAveragePooling2D()(x)), name=f"resnet{depth}")


def compiled(model: keras.Model, rate: float = 0.0) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    return model


def trained(args: argparse.Namespace, name: str, train: tuple) -> keras.Model:
    """Loads a model file, or trains a residual network named by its depth for a little while."""
    if not name.startswith("resnet") or name.endswith(".keras"):
        return compiled(opened(argparse.Namespace(model=name)))
    keras.utils.set_random_seed(0)
    model = compiled(resnet(int(name[6:]), args.width, train[0].shape[1:]), 0.05)
    model.fit(batches(*train, 64, 0, 2), epochs=args.epochs, verbose=0)
    return model


def searches(args: argparse.Namespace, name: str, data: tuple, ways: tuple[str, ...]) -> list[Run]:
    """Returns a search without training for each way to make attempts, all on the same model."""
    train, val, _ = data
    model = trained(args, name, train)
    samples = tuple(np.concatenate([a, b])[: args.samples] for a, b in zip(val, train, strict=True))

    def search(attempts):
        strategy = keras_pcp.strategies.Progressive(attempts=attempts, confidence=args.confidence)
        problem = Problem.of(keras_pcp.build_graph(model), Limits(max_macs=args.target))
        measuring = keras_pcp.Measuring(samples=None, monitor=SIGNALS[args.signal])
        return Run(model, problem, strategy, args.criterion, samples, measuring)

    return [search(way) for way in ways]


def described(args: argparse.Namespace, name: str, run: Run) -> dict:
    """Returns what a row says of the model and the options."""
    return {
        "model": Path(name).stem,
        "data": args.data,
        "groups": len(run.problem.graph),
        "samples": args.samples,
        "criterion": args.criterion,
        "target": args.target,
        "confidence": args.confidence,
        "signal": args.signal,
    }


def alone(args: argparse.Namespace, name: str, data: tuple) -> dict:
    """Runs rounds of the fast way; returns the row."""
    (run,) = searches(args, name, data, ("fast",))
    one, passes, started = run.problem.full.macs * args.samples, [], time.perf_counter()
    while run.progress < 1 and len(passes) < args.rounds:
        before = run.seen.macs
        run.ask(Moment())
        passes.append(round((run.seen.macs - before) / one, 3))
    return {
        "suite": "growth",
        **described(args, name, run),
        "passes": passes,
        "seconds": round(time.perf_counter() - started, 1),
        "command": "python " + " ".join(sys.argv),
    }


def compared(args: argparse.Namespace, name: str, data: tuple) -> dict:
    """Runs rounds both ways; returns the row."""
    exact, fast = searches(args, name, data, ("exact", "fast"))
    seconds, same, rounds = {"exact": 0.0, "fast": 0.0}, 0, 0
    while exact.progress < 1 and rounds < args.rounds:
        fast.kept = exact.kept
        for way, run in (("exact", exact), ("fast", fast)):
            started = time.perf_counter()
            run.ask(Moment())
            seconds[way] += time.perf_counter() - started
        same += set(exact.rounds[-1].chosen) == set(fast.rounds[-1].chosen)
        rounds += 1
        print(rounds, same, f"{fast.seen.macs / exact.seen.macs:.3f}", seconds, flush=True)
    one = exact.problem.full.macs * args.samples * rounds
    return {
        "suite": "attempts",
        **described(args, name, exact),
        "rounds": rounds,
        "same": same,
        "macs": round(exact.rounds[-1].macs / exact.problem.full.macs, 4),
        "exact_passes": round(exact.seen.macs / one, 3),
        "fast_passes": round(fast.seen.macs / one, 3),
        "exact_seconds": round(seconds["exact"], 1),
        "fast_seconds": round(seconds["fast"], 1),
        "accuracy": exact.rounds[0].before.metric,
        "command": "python " + " ".join(sys.argv),
    }


def memory(args: argparse.Namespace, name: str) -> dict:
    """Runs a short `fit` without and with pruning, each in a process of its own; returns the row."""
    peaks = {}
    for way in ("plain", "pruning"):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", way]
        peaks[way] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return {
        "suite": "memory",
        "model": Path(name).stem,
        "samples": args.samples,
        "refit": args.refit,
        "plain_mib": peaks["plain"] // 1024,
        "pruning_mib": peaks["pruning"] // 1024,
        "ratio": round(peaks["pruning"] / peaks["plain"], 3),
        "command": "python " + " ".join(sys.argv),
    }


def child(args: argparse.Namespace, name: str, data: tuple) -> None:
    """One `fit` of 40 steps of 128 images; prints the peak memory of the process in KiB."""
    (x, y), val, _ = data
    model = compiled(trained(args, name, (x[:128], y[:128])), 0.01)
    measuring = keras_pcp.Measuring(samples=args.samples)
    options = {"refit_data": (x[:2048], y[:2048])} if args.refit else {}
    callbacks = [
        keras_pcp.ProgressivePruning(max_macs=args.target, validation_data=val, measuring=measuring, **options)
    ]
    model.fit(x[:5120], y[:5120], batch_size=128, verbose=0, callbacks=callbacks if args.child == "pruning" else [])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--confidence", type=float, default=keras_pcp.strategies.Progressive.confidence)
    parser.add_argument("--signal", default="metric", choices=SIGNALS)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.set_defaults(width=8)  # of the residual networks trained here
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="rounds of the fast way only")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--refit", action="store_true", help="with --memory: pruning with the refit")
    parser.add_argument("--child", choices=["plain", "pruning"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.model.split(","):
        if args.memory and not args.child:
            write(memory(args, name), args.out)
            continue
        data = prepared(args)
        if args.child:
            child(args, name, data)
        else:
            write((alone if args.alone else compared)(args, name, data), args.out)


if __name__ == "__main__":
    main()

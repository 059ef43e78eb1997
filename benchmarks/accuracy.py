"""Accuracy after pruning with a small training budget: progressive channel pruning and baselines, with any criterion.

    python benchmarks/accuracy.py --model resnet20_fashion.keras --data fashion_mnist --mean 0.2860 --std 0.3530 \
        --out benchmarks/results/accuracy.jsonl
    python benchmarks/accuracy.py --model vgg --data mnist --out benchmarks/results/accuracy.jsonl

All methods run in the same `fit` with the same callback, images, augmentation (flip, shift by up to two pixels),
optimizer, learning-rate schedule and distillation; only the strategy and the criterion differ. 5,000 training images (a
sixth of the data, if that is less), or test images with `--held-out test`, are held out: widths are chosen by them. The
test images are evaluated for the record only. Rows that are already in the output file are skipped, so an interrupted run
continues where it stopped.

Method `torch_pruning` needs `--against`, a Python with torch and torch-pruning (pip install torch torch-pruning numpy).
There the same weights are pruned in equal parts of every layer, and tuned on the same images in the same order, without
refit and distillation.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import tensorflow as tf
from hand_over import hand_over
from rows import read, write
from trained_model import accuracy, add_arguments, batches, fresh, opened, prepared

import keras_pcp
from keras_pcp.statistics.trainability import mean_singular_value
from keras_pcp.strategies import Adaptive, Chex, LayerByLayer, OneShot, Progressive, RandomWidths, SoftFilterPruning

METHODS = {
    "pcp": Progressive,
    "acp": Adaptive,
    "layerwise": LayerByLayer,
    "uniform": OneShot,
    "global": lambda: OneShot(scope="global"),
    "random_widths": RandomWidths,
    "single_layer": lambda: Progressive(groups_per_round=1),
    "netadapt": lambda: Progressive(groups_per_round=1, step=0.025),
    "sfp": SoftFilterPruning,
    "chex": lambda: Chex(every=1),
}
SIGNALS = {"metric": None, "loss": "loss"}  # what attempts are compared by, as a monitor


class AfterPruning(keras.callbacks.Callback):
    """Watches the network after its latest shrink: its Jacobian right then, and the accuracy of the first batches."""

    steps = 100

    def __init__(self, pruning, x):
        super().__init__()
        self.pruning, self.x, self.shrinks = pruning, x, 0
        self.singular_value, self.batches = None, []

    def on_train_batch_begin(self, batch, logs=None):
        if len(self.pruning.report.shrinks) > self.shrinks:
            self.shrinks, self.batches = len(self.pruning.report.shrinks), []
            self.singular_value = mean_singular_value(self.model, self.x)

    def on_train_batch_end(self, batch, logs=None):
        before = self.sum if batch else 0.0
        self.sum = logs["accuracy"] * (batch + 1)  # what Keras gives is the mean since the epoch began
        self.batches.append(self.sum - before)

    @property
    def accuracy(self):
        """Mean accuracy of the first batches since the latest shrink."""
        first = self.batches[: self.steps]
        return sum(first) / len(first)


def compiled(model, args, steps):
    """Compiles for fine-tuning with this number of steps."""
    rate = keras.optimizers.schedules.CosineDecay(args.rate, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def run(args, method, criterion, target, seed, data):
    """Prunes and tunes once; returns the row."""
    (x, y), val, test = data
    keras.utils.set_random_seed(seed)
    model = fresh(args, x, y) if args.scratch else opened(args)
    unpruned = keras.models.clone_model(model)
    unpruned.set_weights(model.get_weights())
    graph = keras_pcp.build_graph(unpruned)
    full, steps = keras_pcp.count_cost(graph), len(x) // args.batch * args.epochs
    options = json.loads(args.strategy) if method in ("pcp", "acp") else {}
    pruning = keras_pcp.Pruning(
        METHODS[method](**options),
        max_macs=target,
        validation_data=val,
        criterion=criterion.split("+"),
        begin=args.begin,
        end=args.end,
        measuring=keras_pcp.Measuring(samples=args.samples, monitor=SIGNALS[args.signal], seed=seed),
        distillation=keras_pcp.Distillation(args.distillation) if args.distillation else None,
        refit_data=(x[:2000], y[:2000]) if args.refit else None,
    )
    started = time.perf_counter()
    images = batches(x, y, args.batch, seed, args.shift, flip=args.data != "mnist")
    after = AfterPruning(pruning, val[0][:64])
    compiled(model, args, steps).fit(images, epochs=args.epochs, callbacks=[pruning, after], verbose=args.verbose)
    keras_pcp.reestimate_batch_norm(model, x)
    seconds, report = time.perf_counter() - started, pruning.report
    if args.keep:
        model.save(Path(args.keep) / f"{Path(args.model).stem}_{method}_{criterion}_{target}_{seed}.keras")
    cost = keras_pcp.count_cost(model)
    untrained = keras_pcp.prune_model(unpruned, graph, report.selection)
    before_tuning = accuracy(untrained, *test)
    if args.refit:
        keras_pcp.refit(unpruned, untrained, graph, report.selection, x[:2000])
    keras_pcp.reestimate_batch_norm(untrained, x)
    return {
        "suite": "accuracy",
        "model": Path(args.model).stem,
        "data": args.data,
        "method": method,
        "criterion": criterion,
        "target": target,
        "seed": seed,
        "macs": round(cost.macs / full.macs, 4),
        "params": round(cost.params / full.params, 4),
        "acc_unpruned": accuracy(unpruned, *test),
        "acc_before_tuning": before_tuning,
        "acc_untrained": accuracy(untrained, *test),
        "val_acc": accuracy(model, *val),
        "acc": accuracy(model, *test),
        "epochs": args.epochs,
        "images": steps * args.batch,
        "seconds": round(seconds, 1),
        "attempt_macs": report.attempt_macs,
        "attempt_seconds": round(report.seconds["attempts"], 2),
        "surgery_seconds": round(report.seconds["surgery"], 2),
        "retracing_seconds": round(report.seconds["retracing"], 2),
        "rounds": len(report.rounds),
        "first_steps": round(after.accuracy, 4),
        "singular_value": round(after.singular_value, 4),
        "errors": [[round(e, 4) for e in cut.error] for cut in report.cuts],
        "tag": args.tag,
        "signal": args.signal,
        "widths": {name: now for name, (_, now) in report.widths.items()},
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "command": "python " + " ".join(sys.argv),
    }


def run_torch_pruning(args, criterion, target, seed, data):
    """Prunes and tunes once with Torch-Pruning; returns the row."""
    (x, y), val, test = data
    keras.utils.set_random_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        images = batches(x, y, args.batch, seed, args.shift, flip=args.data != "mnist")
        hand_over(opened(args), images, args.epochs, val, test, Path(folder))
        options = {"criterion": criterion, "target": target, "epochs": args.epochs, "rate": args.rate, "seed": seed}
        command = [args.against, str(Path(__file__).with_name("torch_accuracy.py")), folder]
        command += [f"--{name}={value}" for name, value in options.items()]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {
        "suite": "accuracy",
        "model": Path(args.model).stem,
        "data": args.data,
        "method": "torch_pruning",
        "criterion": criterion,
        "target": target,
        "seed": seed,
        **found,
        "epochs": args.epochs,
        "attempt_macs": 0,
        "attempt_seconds": 0,
        "rounds": 0,
        "tag": args.tag,
        "command": "python " + " ".join(sys.argv),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--methods", default="pcp,layerwise,uniform,global,random_widths,single_layer,netadapt")
    parser.add_argument("--criteria", default="l1", help="base criteria of each method; a+b: several in each attempt")
    parser.add_argument("--targets", default="0.25,0.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--strategy", default="{}", help="JSON of options of the strategy for pcp and acp")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument(
        "--signal", default="metric", choices=SIGNALS, help="what attempts are compared by, in all methods"
    )
    parser.add_argument("--distillation", type=float, default=0.5, help="weight; 0: none")
    parser.add_argument("--refit", action="store_true", help="refit readers of pruned channels")
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--shift", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, help="training images to use; default: all")
    parser.add_argument("--tag", default="", help="distinguishes rows with different options")
    parser.add_argument("--keep", help="a folder where the pruned models are kept")
    parser.add_argument("--against", help="a Python with torch-pruning, for the method torch_pruning")
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    narrow = f"width {args.width}" if args.model == "vgg" and args.width != 16 else ""
    args.tag = ", ".join(filter(None, ("from scratch" * args.scratch, narrow, args.tag)))
    train, *held_out = prepared(args)
    data = (tuple(array[: args.images] for array in train), *held_out)
    fields = ("model", "method", "criterion", "target", "seed", "tag", "signal")
    done = {tuple(r.get(f) for f in fields) for r in read(args.out)}
    for seed in map(int, args.seeds.split(",")):
        for target in map(float, args.targets.split(",")):
            for criterion in args.criteria.split(","):
                for method in args.methods.split(","):
                    signal = None if method == "torch_pruning" else args.signal
                    if (Path(args.model).stem, method, criterion, target, seed, args.tag, signal) not in done:
                        if method == "torch_pruning":
                            row = run_torch_pruning(args, criterion, target, seed, data)
                        else:
                            row = run(args, method, criterion, target, seed, data)
                        write(row, args.out)
                        keras.backend.clear_session()


if __name__ == "__main__":
    main()

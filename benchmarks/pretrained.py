"""Prunes a trained Keras classifier with one small training budget, by PCP in fit or by uniform L1 in one shot.

    python benchmarks/pretrained.py --model resnet20_fashion.keras --data fashion_mnist --mean 0.2860 --std 0.3530 \
        --methods pcp,uniform --targets 0.5,0.25 --seeds 0,1,2 --out benchmarks/results/pretrained.jsonl

Both methods see the same number of training images in all, with the same augmentation, optimizer and learning-rate
schedule. 5,000 training images are held out as validation data; the test images are evaluated once per row, and nothing
is chosen by them. Rows that are in the output file already are skipped.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rows import read, write
from trained_model import add_arguments, prepared

import keras_pcp

BATCH = 128


def batches(x, y, pad_value, seed, epochs):
    """Shuffled batches, flipped and shifted by up to two pixels (one shift a batch)."""

    def augment(images, labels):
        images = tf.image.random_flip_left_right(images)
        size = tf.shape(images)
        padded = tf.pad(images, [[0, 0], [2, 2], [2, 2], [0, 0]], constant_values=pad_value)
        return tf.image.random_crop(padded, size), labels

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    return data.batch(BATCH, drop_remainder=True).map(augment, num_parallel_calls=2).prefetch(2)


def compile_for(model, steps, rate):
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=model.layers[-1].activation is keras.activations.linear),
        metrics=["accuracy"],
    )


def accuracy(model, x, y):
    predicted = model.predict(x, batch_size=500, verbose=0).argmax(-1)
    return float(np.mean(predicted == y))


def run(args, method, target, seed, data):
    (x, y), val, test = data
    keras.utils.set_random_seed(seed)
    model = keras.models.load_model(args.model)
    graph = keras_pcp.build_graph(model)
    full = keras_pcp.count_cost(graph)
    steps = len(x) // BATCH * args.epochs
    callbacks, pruning, before_tuning = [], None, None
    started = time.perf_counter()
    if method == "pcp":
        strategy = keras_pcp.Progressive(seed=seed, **json.loads(args.strategy))
        pruning = keras_pcp.ProgressivePruning(
            max_macs=target, validation_data=val, criterion=args.criterion, strategy=strategy,
            begin=args.begin, end=args.end, schedule=getattr(keras_pcp.schedules, args.schedule),
        )  # fmt: skip
        callbacks = [pruning]
    elif method == "uniform":
        scores = keras_pcp.score_channels(model, graph, args.criterion, data=val, seed=seed)
        selection = keras_pcp.select_by_cost(graph, scores, max_macs=target, scope="local")
        model = keras_pcp.prune_model(model, graph, selection)
        before_tuning = accuracy(model, *test)
    compile_for(model, steps, args.rate)
    model.fit(
        batches(x, y, float(x.min()), seed, args.epochs), epochs=args.epochs, callbacks=callbacks, verbose=args.verbose
    )
    seconds = time.perf_counter() - started
    cost = keras_pcp.count_cost(model)
    spent = pruning.report.seconds if pruning else {}
    return {
        "suite": "pretrained", "model": Path(args.model).stem, "data": args.data, "method": method,
        "criterion": args.criterion, "target": target, "seed": seed, "macs": round(cost.macs / full.macs, 4),
        "params": round(cost.params / full.params, 4), "acc_before_tuning": before_tuning,
        "val_acc": accuracy(model, *val), "acc": accuracy(model, *test), "epochs": args.epochs,
        "images": steps * BATCH, "seconds": round(seconds, 1),
        **{f"{k}_seconds": round(v, 2) for k, v in spent.items()},
        "rounds": len(pruning.report.rounds) if pruning else 0,
        "shrinks": len(pruning.report.shrinks) if pruning else 0, "tag": args.tag,
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "command": "python " + " ".join(sys.argv),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--methods", default="pcp,uniform")
    parser.add_argument("--targets", default="0.5,0.25")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--strategy", default="{}", help="JSON of options of keras_pcp.Progressive")
    parser.add_argument("--schedule", default="cubic")
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--tag", default="")
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    data = prepared(args)
    done = {(r["method"], r["criterion"], r["target"], r["seed"], r["tag"]) for r in read(args.out)}
    for seed in map(int, args.seeds.split(",")):
        for target in map(float, args.targets.split(",")):
            for method in args.methods.split(","):
                if (method, args.criterion, target, seed, args.tag) in done:
                    continue
                write(run(args, method, target, seed, data), args.out)


if __name__ == "__main__":
    main()

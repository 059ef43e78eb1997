"""Trains a residual network, prunes it to half of its MACs in an ordinary `fit`, and exports it to LiteRT.

    python examples/prune_in_fit.py                            # real handwritten digits from scikit-learn
    python examples/prune_in_fit.py --dataset fashion_mnist    # any image-classification set of tensorflow-datasets

Prints accuracy, MACs, parameters, file size and latency before and after. The widths are chosen on validation images that
are held out of the training images. The test images are used only for the two accuracies in the table.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import keras
from image_data import hold_out, load
from keras import layers

import keras_pcp


def residual_network(shape: tuple, classes: int, width: int, blocks: int) -> keras.Model:
    """A ResNet for small images (He et al. 2016, arXiv 1512.03385, section 4.2): three stages of basic blocks."""

    def conv(x, filters, kernel, strides, name, activation=True):
        x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        return layers.ReLU()(x) if activation else x

    inputs = keras.Input(shape)
    x = conv(inputs, width, 3, 1, "stem")
    for stage in range(3):
        for block in range(blocks):
            filters, strides, name = width * 2**stage, 2 if stage and not block else 1, f"s{stage + 1}b{block + 1}"
            shortcut = x if strides == 1 else conv(x, filters, 1, strides, f"{name}_shortcut", activation=False)
            y = conv(x, filters, 3, strides, f"{name}_conv1")
            y = conv(y, filters, 3, 1, f"{name}_conv2", activation=False)
            x = layers.ReLU()(layers.Add()([y, shortcut]))
    return keras.Model(inputs, layers.Dense(classes, name="logits")(layers.GlobalAveragePooling2D()(x)), name="resnet")


def fit(model: keras.Model, train: tuple, val: tuple, epochs: int, rate: float, batch: int, callbacks: list) -> float:
    """Compiles, trains with a cosine learning rate, and returns the time in seconds."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(train[0]) // batch))
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    started = time.perf_counter()
    model.fit(*train, batch_size=batch, epochs=epochs, verbose=2, validation_data=val, callbacks=callbacks)
    return time.perf_counter() - started


def measure(model: keras.Model, path: Path, test: tuple, samples, quantization: str | None) -> dict[str, float]:
    """Exports, verifies, and returns the figures of the table."""
    file = keras_pcp.export_litert(model, path, quantization=quantization, representative_data=samples)
    cost = keras_pcp.count_cost(model)
    return {
        "test accuracy": model.evaluate(*test, verbose=0, return_dict=True)["accuracy"],
        "MACs": cost.macs,
        "parameters": cost.params,
        "LiteRT file, bytes": file.bytes,
        "latency, ms": keras_pcp.measure_latency(path, runs=200),
        "LiteRT error": file.max_error,
    }


def show(before: dict[str, float], after: dict[str, float]) -> None:
    """Prints the table."""
    print(f"\n{'':<20}{'before':>14}{'after':>14}{'ratio':>9}")
    for name, old in before.items():
        new = after[name]
        style = {"test accuracy": ".4f", "latency, ms": ".3f", "LiteRT error": ".1e"}.get(name, ",.0f")
        ratio = f"{new / old:>9.3f}" if name != "LiteRT error" else ""
        print(f"{name:<20}{format(old, style):>14}{format(new, style):>14}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, or the name of a set of tensorflow-datasets")
    parser.add_argument("--data-dir", help="folder of prepared tensorflow-datasets")
    parser.add_argument("--max-macs", type=float, default=0.5)
    parser.add_argument("--criterion", default="l1", choices=sorted(keras_pcp.criteria.BY_NAME))
    parser.add_argument("--quantization", choices=["float16", "dynamic", "int8"])
    parser.add_argument("--epochs", type=int, default=15, help="epochs of training, and as many of pruning")
    parser.add_argument("--width", type=int, default=32, help="filters of the first stage")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks per stage")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int, help="use at most this number of training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="file to append the table to, as a JSON line")
    parser.add_argument("--out", type=Path, help="folder for the LiteRT files, the report and the plot")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    (x, y), test = load(args.dataset, args.data_dir)
    x, y = x[: args.limit], y[: args.limit]
    train, val = hold_out(x, y, max(1, min(5000, len(x) // 5)))
    model = residual_network(x.shape[1:], int(y.max()) + 1, args.width, args.blocks)
    print(f"{args.dataset}: {len(train[0])} training, {len(val[0])} validation and {len(test[0])} test images")

    trained = fit(model, train, val, args.epochs, 0.1, args.batch, [])
    before = measure(model, out / "before.tflite", test, val[0], args.quantization)
    pruning = keras_pcp.ProgressivePruning(
        max_macs=args.max_macs,
        validation_data=val,
        criterion=args.criterion,
        begin=0.0,
        measuring=keras_pcp.Measuring(seed=args.seed),
    )
    pruned = fit(model, train, val, args.epochs, 0.05, args.batch, [pruning])
    after = measure(model, out / "after.tflite", test, val[0], args.quantization)

    print(pruning.report)
    show(before, after)
    print(f"\ntraining took {trained:.0f} s; pruning in fit took {pruned:.0f} s for the same number of epochs")
    if args.record:
        row = {
            "suite": "example",
            "data": args.dataset,
            "seed": args.seed,
            "before": before,
            "after": after,
            "train_seconds": round(trained, 1),
            "pruning_seconds": round(pruned, 1),
            "command": "python " + " ".join(sys.argv),
        }
        with args.record.open("a") as file:
            file.write(json.dumps(row) + "\n")
    pruning.report.to_json(out / "report.json")
    pruning.report.plot(out / "widths.png")
    model.save(out / "after.keras")
    print(f"files: {', '.join(str(p) for p in sorted(out.iterdir()))}")


if __name__ == "__main__":
    main()

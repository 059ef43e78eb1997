"""Trains a detector or a U-Net, prunes it to half of its MACs in an ordinary `fit`, and exports it to LiteRT.

    python examples/prune_dense_prediction.py detection
    python examples/prune_dense_prediction.py segmentation
    python examples/prune_dense_prediction.py detection --data voc/2007 --size 160 --epochs 40
    python examples/prune_dense_prediction.py detection --data coco/2017 --test-split validation --size 160 --epochs 40

Images are generated: shapes on photographs. For detection, any set of tensorflow-datasets with boxes will do. Prints mean
average precision at an overlap of 0.5, or mean intersection over union, on test images: of the trained model, of the model
that goes on unpruned for as many epochs as pruning takes, and of the pruned model.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import keras
from detector import compile_detector, detections, mean_average_precision, single_shot_detector, targets
from keras import layers
from objects import Objects, load_objects

import keras_pcp


class Detection:
    """Boxes and classes of objects."""

    metric = "mAP at 0.5"

    def model(self, size: int, names: tuple[str, ...]) -> keras.Model:
        return single_shot_detector(size, len(names))

    def compile(self, model: keras.Model, rate: float, steps: int) -> None:
        compile_detector(model, rate, steps)

    def samples(self, objects: Objects) -> tuple:
        return objects.images, *targets(objects)

    def score(self, model: keras.Model, objects: Objects) -> float:
        outputs = model.predict(objects.images, verbose=0)
        return mean_average_precision(detections(outputs, objects.images.shape[1]), objects)


class Segmentation:
    """The class of every pixel, by a U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with batch normalization."""

    metric = "mean IoU"

    def model(self, size: int, names: tuple[str, ...], width: int = 8, depth: int = 3) -> keras.Model:
        def block(x, filters):
            for _ in range(2):
                x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
                x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
            return x

        inputs = keras.Input((size, size, 3))
        x, skips = inputs, []
        for level in range(depth):
            skips.append(block(x, width * 2**level))
            x = layers.MaxPooling2D()(skips[-1])
        x = block(x, width * 2**depth)
        for level in reversed(range(depth)):
            x = layers.Conv2DTranspose(width * 2**level, 2, strides=2)(x)
            x = block(layers.Concatenate()([skips[level], x]), width * 2**level)
        return keras.Model(inputs, layers.Conv2D(1 + len(names), 1)(x), name="unet")

    def compile(self, model: keras.Model, rate: float, steps: int) -> None:
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
        model.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def samples(self, objects: Objects) -> tuple:
        if objects.masks is None:
            raise SystemExit("these images have no masks; segmentation needs --data shapes")
        return objects.images, objects.masks, None

    def score(self, model: keras.Model, objects: Objects) -> float:
        iou = keras.metrics.MeanIoU(1 + len(objects.names), sparse_y_pred=False)
        iou.update_state(objects.masks, model.predict(objects.images, batch_size=32, verbose=0))
        return float(iou.result())


TASKS = {"detection": Detection, "segmentation": Segmentation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", default="shapes", help="shapes, or a set of tensorflow-datasets with boxes")
    parser.add_argument("--data-dir", help="folder of prepared tensorflow-datasets")
    parser.add_argument("--test-split", default="test", help="of a set of tensorflow-datasets")
    parser.add_argument("--size", type=int, default=96, help="height and width of the images; a multiple of 16")
    parser.add_argument("--images", type=int, default=3000, help="training images; a sixth as many for the test")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training, and as many of pruning")
    parser.add_argument("--max-macs", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantization", choices=["float16", "dynamic", "int8"])
    parser.add_argument("--record", type=Path, help="file to append the result to, as a JSON line")
    parser.add_argument("--out", type=Path, help="folder for the LiteRT files and the report")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    task = TASKS[args.task]()
    train = load_objects(args.data, "train", args.size, args.images, args.data_dir)
    test = load_objects(args.data, args.test_split, args.size, args.images // 6, args.data_dir)
    x, y, weights = task.samples(train)
    steps = -(-len(x) // args.batch) * args.epochs

    def fit(model: keras.Model, callbacks: list) -> float:
        task.compile(model, args.rate, steps)
        started = time.perf_counter()
        options = {"batch_size": args.batch, "epochs": args.epochs, "callbacks": callbacks, "verbose": 2}
        model.fit(x, y, sample_weight=weights, **options)
        return time.perf_counter() - started

    def measure(model: keras.Model, path: Path) -> dict[str, float]:
        file = keras_pcp.export_litert(
            model, path, quantization=args.quantization, representative_data=train.images[:100]
        )
        cost = keras_pcp.count_cost(model)
        found = {task.metric: task.score(model, test), "MACs": cost.macs, "parameters": cost.params}
        latency = keras_pcp.measure_latency(path, runs=100)
        return found | {"LiteRT file, bytes": file.bytes, "LiteRT error": file.max_error, "latency, ms": latency}

    model = task.model(args.size, train.names)
    fit(model, [])
    rows = {"before": measure(model, out / "before.tflite")}
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    unpruned = fit(twin, [])
    rows["unpruned, as long"] = measure(twin, out / "unpruned.tflite")
    pruning = keras_pcp.AdaptivePruning(max_macs=args.max_macs)
    pruned = fit(model, [pruning])
    rows["pruned"] = measure(model, out / "pruned.tflite")

    print(pruning.report)
    for name, row in rows.items():
        print(f"{name:<20}" + "  ".join(f"{key} {value:,.4g}" for key, value in row.items()))
    print(f"fit took {unpruned:.0f} s unpruned and {pruned:.0f} s with pruning; files are in {out}")
    pruning.report.to_json(out / "report.json")
    if args.record:
        seconds = {"unpruned_seconds": round(unpruned, 1), "pruning_seconds": round(pruned, 1)}
        row = {"suite": "dense_prediction", "task": args.task, "data": args.data, "seed": args.seed, **rows, **seconds}
        with args.record.open("a") as file:
            file.write(json.dumps({**row, "command": "python " + " ".join(sys.argv)}) + "\n")


if __name__ == "__main__":
    main()

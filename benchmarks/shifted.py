"""What a network for shifted photographs should be pruned by: source labels, pseudo-labels of the target, or neither.

    python benchmarks/shifted.py --model resnet20_cifar10.keras --out benchmarks/results/shifted.jsonl

The source is cifar10, with labels. The target is the test images of cifar10 under a fixed shift, without labels: a colour
cast, blur, noise. The given classifier (its last layer gives logits) has been trained on cifar10; all of its training
images may be in the source. It is adapted to the target as a DANN. Then it is pruned, in a further `fit`, by

- `source`: source labels alone;
- `pseudo`: source labels, and pseudo-labels of the target;
- `oracle`: source labels, and the true labels of the target, for comparison;
- `uniform`: equal parts of every group, by the L1 norm;
- `random_widths`: the best of ten random configurations, by source labels and pseudo-labels.

Only the samples that attempts and the criterion see differ. The refit after the cut and the recovery are the same for all:
images of both domains, source labels, pseudo-labels, the domain loss. A row has the accuracy on shifted test images right
after the cut and the refit, before any training, and after the recovery. Rows that are already in the output file are
skipped.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from adaptation import TrueLabels
from rows import read, write
from trained_model import accuracy

import keras_pcp

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from image_data import hold_out, load

HELD_OUT = 512
METHODS = "source,pseudo,oracle,uniform,random_widths"
STRATEGIES = {"uniform": keras_pcp.strategies.OneShot(), "random_widths": keras_pcp.strategies.RandomWidths()}
FIELDS = ("model", "criterion", "method", "target", "seed", "tag")


def shifted(x: np.ndarray, part: int) -> np.ndarray:
    """Returns images under a warm light, out of focus, and with noise. `x` is in [0, 1]."""
    noise = np.random.default_rng([0, part]).normal(0.0, 0.04, x.shape)
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / 0.7) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        padded = np.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(4)], mode="edge")
        x = sum(w * padded.take(range(i, i + x.shape[axis]), axis) for i, w in enumerate(kernel))
    return np.clip(x * [0.9, 0.65, 0.45] + [0.1, 0.05, 0.0] + noise, 0.0, 1.0).astype("float32")


def prepared(args: argparse.Namespace) -> dict:
    """Loads the images. Validation samples of both domains are test images, as the network has seen the others."""
    (x, y), test = load("cifar10", args.data_dir)
    target, target_test = hold_out(*test, 5000)
    target, source_val = hold_out(*target, HELD_OUT)
    target, target_val = hold_out(*target, HELD_OUT)
    return {
        "source": (x[: args.images], y[: args.images]),
        "source_val": source_val,
        "target": (shifted(target[0], 0), target[1]),
        "target_val": (shifted(target_val[0], 1), target_val[1]),
        "target_test": (shifted(target_test[0], 2), target_test[1]),
        "source_test": target_test,
    }


def dann_of(file: str) -> keras_pcp.adaptation.DANN:
    """Returns a domain-adversarial network whose label path is the classifier of a file."""
    classifier = keras.models.load_model(file, compile=False)
    features = keras.Model(classifier.input, classifier.layers[-1].input, name="features")
    adversary = keras.Sequential(
        [keras.layers.Dense(100, activation="relu"), keras.layers.Dense(1)], name="domain_head"
    )
    return keras_pcp.adaptation.DANN(features, classifier.layers[-1], adversary)


def fit(args: argparse.Namespace, dann, data: dict, seed: int, epochs: int, rate: float, labels=None, callbacks=()):
    """Trains for some epochs with the optimizer of Ganin et al."""
    steps = epochs * -(-max(len(data["source"][0]), len(data["target"][0])) // args.batch)
    dann.compile(keras.optimizers.SGD(keras_pcp.adaptation.AnnealedLearningRate(rate, steps), momentum=0.9))
    fitting = {"epochs": epochs, "seed": seed, "batch_size": 2 * args.batch, "verbose": 0, "pseudo_labels": labels}
    dann.fit(data["source"], data["target"][0], callbacks=list(callbacks), **fitting)


def adapted(args: argparse.Namespace, data: dict, seed: int) -> keras_pcp.adaptation.DANN:
    """Adapts the network to the target, or loads it if that was done before."""
    keras.utils.set_random_seed(seed)
    dann = dann_of(args.model)
    file = args.cache / f"shifted_{Path(args.model).stem}_{args.images}_{args.epochs}_{args.rate}_{seed}.weights.h5"
    if not file.exists():
        fit(args, dann, data, seed, args.epochs, args.rate, callbacks=[keras_pcp.adaptation.ReversalSchedule()])
        dann.model.save_weights(file)
    dann.model.load_weights(file)
    dann.model.get_layer("reversal").weight.assign(1.0)
    return dann


def measured(classifier: keras.Model, data: dict, when: str = "") -> dict[str, float]:
    return {f"{domain}_acc{when}": accuracy(classifier, *data[f"{domain}_test"]) for domain in ("target", "source")}


def run(args: argparse.Namespace, method: str, target: float, data: dict, seed: int) -> dict:
    """Prunes in a further `fit`; returns what was measured."""
    dann = adapted(args, data, seed)
    whole = keras.models.clone_model(dann.classifier)
    whole.set_weights(dann.classifier.get_weights())
    if method == "unpruned":
        fit(args, dann, data, seed, args.prune_epochs, args.rate / 5, keras_pcp.PseudoLabels(args.threshold))
        return {"macs": 1.0} | measured(whole, data, "_cut") | measured(dann.classifier, data)
    images = np.concatenate([data["source"][0][:1000], data["target"][0][:1000]])
    labels = keras_pcp.PseudoLabels(args.threshold)
    if method == "oracle":
        labels = TrueLabels(true_labels=data["target_val"][1])
    weight = 0.0 if method == "source" else 0.5
    pruning = keras_pcp.Pruning(
        STRATEGIES.get(method, keras_pcp.strategies.Progressive()),
        max_macs=target,
        deliver=dann.classifier,
        criterion="l1" if method == "uniform" else args.criterion,
        begin=0.0,
        end=0.05,
        validation_data=dann.validation_data(
            data["source_val"], data["target_val"][0], target_weight=weight, pseudo_labels=labels, samples=None
        ),
        measuring=keras_pcp.Measuring(samples=None, seed=seed),
        refit_data=images,
    )
    recovery = keras_pcp.PseudoLabels(args.threshold, true_labels=data["target"][1])
    fit(args, dann, data, seed, args.prune_epochs, args.rate / 5, recovery, [pruning])
    report, graph = pruning.report, keras_pcp.build_graph(whole)
    cut = keras_pcp.prune_model(whole, graph, report.selection)
    keras_pcp.refit(whole, cut, graph, report.selection, images)
    return {
        "macs": round(report.after["macs"] / report.before["macs"], 4),
        "attempt_seconds": round(report.seconds["attempts"], 1),
        "pseudo_labels": recovery.history[-1:],
        "widths": {name: now for name, (_, now) in report.widths.items()},
        **measured(cut, data, "_cut"),
        **measured(dann.classifier, data),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a .keras file")
    parser.add_argument("--data-dir")
    parser.add_argument("--methods", default="unpruned," + METHODS)
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--targets", default="0.25")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=5000, help="labelled images of the source")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--prune-epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="images of each domain")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate; a fifth of it while pruning")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--tag", default="", help="distinguishes rows with different options")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder for the adapted networks")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data, done = prepared(args), {tuple(r[f] for f in FIELDS) for r in read(args.out)}
    for seed in map(int, args.seeds.split(",")):
        for target in map(float, args.targets.split(",")):
            for method in args.methods.split(","):
                key = dict(
                    zip(FIELDS, (Path(args.model).stem, args.criterion, method, target, seed, args.tag), strict=True)
                )
                if tuple(key.values()) in done:
                    continue
                started = time.perf_counter()
                found = run(args, method, target, data, seed)
                made = {"seconds": round(time.perf_counter() - started, 1), "command": "python " + " ".join(sys.argv)}
                versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
                write({"suite": "shifted"} | key | found | made | {"versions": versions}, args.out)
                keras.backend.clear_session()


if __name__ == "__main__":
    main()

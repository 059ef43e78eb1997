"""Domain adaptation before and after pruning: target accuracy for different ways to choose channels and widths.

    python benchmarks/adaptation.py --source mnist --target mnist_m --out benchmarks/results/adaptation.jsonl

First, networks are trained: on the labelled source alone (`source_only`), with a gradient reversal (`dann`), and with the
maximum mean discrepancy (`mmd`). `dann_pseudo` is the DANN after a further `fit` without pruning.

Then the DANN is pruned in the first 5 % of the same further `fit`. All methods recover in the same way: with the refit on
images of both domains, source labels, pseudo-labels and the domain loss. They differ in the samples that attempts and the
criterion see, or in the strategy:

- `source`: source labels. `pseudo`: source labels and pseudo-labels. `oracle`: true target labels, for comparison.
- `random_widths`, `uniform`: other strategies.
- `no_pseudo`: no pseudo-labels, neither for choosing nor in recovery.
- `adapt_after`: prunes the network that was trained on the source alone, by the source, and then trains it as a DANN from
  the start, so it sees more images than the others.

512 training images of each domain are held out for choosing. True target labels are used only for the rows `oracle`. Rows
that are already in the output file are skipped.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rows import read, write
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from trained_model import accuracy

import keras_pcp

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from domains import load_domains
from image_data import hold_out
from prune_across_domains import digit_network

HELD_OUT = 512
KINDS = ("source_only", "dann", "mmd", "dann_pseudo")
METHODS = ("no_pseudo", "source", "pseudo", "oracle", "random_widths", "uniform", "adapt_after")


def compiled(dann: keras_pcp.adaptation.DANN, kind: str, rate: float, steps: int) -> None:
    """Compiles with the optimizer of Ganin et al."""
    optimizer = keras.optimizers.SGD(keras_pcp.adaptation.AnnealedLearningRate(rate, steps), momentum=0.9)
    dann.compile(optimizer, domain_weight=0.0 if kind == "source_only" else 1.0)


def train(args: argparse.Namespace, dann: keras_pcp.adaptation.DANN, kind: str, data: dict, seed: int) -> None:
    """Trains from where the network stands."""
    compiled(dann, kind, args.rate, steps(args.epochs, data))
    callbacks = [keras_pcp.adaptation.ReversalSchedule()] if kind == "dann" else []
    dann.fit(data["source"], data["target"], epochs=args.epochs, seed=seed, callbacks=callbacks, verbose=0)


def steps(epochs: int, data: dict) -> int:
    return epochs * -(-max(len(data["source"][0]), len(data["target"])) // 64)


def trained(args: argparse.Namespace, kind: str, data: dict, seed: int) -> keras_pcp.adaptation.DANN:
    """Trains a network, or loads it if that was done before."""
    keras.utils.set_random_seed(seed)
    dann = digit_network(data["classes"], keras_pcp.adaptation.MeanDiscrepancy() if kind == "mmd" else None)
    file = args.cache / f"{args.source}_{args.target}_{kind}_{args.epochs}_{args.rate}_{seed}.weights.h5"
    if file.exists():
        dann.model.load_weights(file)
    else:
        train(args, dann, kind, data, seed)
        dann.model.save_weights(file)
    return dann


def go_on(
    args: argparse.Namespace, dann: keras_pcp.adaptation.DANN, kind: str, data: dict, seed: int, labels, callbacks
) -> None:
    """The further `fit`, in which a network is pruned."""
    compiled(dann, kind, args.rate / 5, steps(args.prune_epochs, data))
    if kind == "dann":
        dann.model.get_layer("reversal").weight.assign(1.0)
    dann.fit(
        data["source"],
        data["target"],
        epochs=args.prune_epochs,
        seed=seed,
        callbacks=callbacks,
        verbose=0,
        pseudo_labels=labels,
    )


def unpruned(args: argparse.Namespace, kind: str, data: dict, seed: int) -> keras_pcp.adaptation.DANN:
    """Returns a network as it is before pruning, or after a further `fit` without pruning."""
    dann = trained(args, kind.removesuffix("_pseudo"), data, seed)
    if kind.endswith("_pseudo"):
        go_on(args, dann, "dann", data, seed, keras_pcp.PseudoLabels(args.threshold), [])
    return dann


def criterion_of(args: argparse.Namespace, method: str) -> str:
    return "l1" if method == "uniform" else args.criterion


def prune(args: argparse.Namespace, method: str, target: float, data: dict, seed: int) -> tuple:
    """Prunes in a `fit`; returns the network, the report and the pseudo-labels."""
    kind = "source_only" if method == "adapt_after" else "dann"
    dann = trained(args, kind, data, seed)
    source, unlabelled = data["source_val"], data["target_val"][0]
    weight = 0.0 if method in ("no_pseudo", "source", "adapt_after") else 0.5
    true_labels = data["target_val"][1]
    labels = TrueLabels(true_labels=true_labels) if method == "oracle" else keras_pcp.PseudoLabels(args.threshold)
    validation = dann.validation_data(source, unlabelled, target_weight=weight, pseudo_labels=labels, samples=None)
    controls = {"random_widths": keras_pcp.strategies.RandomWidths(), "uniform": keras_pcp.strategies.OneShot()}
    strategy = controls.get(method, keras_pcp.strategies.Progressive(step=0.02))
    images = np.concatenate([data["source"][0][:1000], data["target"][:1000]])
    pruning = keras_pcp.Pruning(
        strategy,
        max_macs=target,
        deliver=dann.classifier,
        criterion=criterion_of(args, method),
        begin=0.0,
        end=0.05,
        validation_data=validation,
        measuring=keras_pcp.Measuring(samples=None, seed=seed),
        refit_data=images,
    )
    recovery = keras_pcp.PseudoLabels(args.threshold, true_labels=data["target_labels"])
    uses_labels = method not in ("no_pseudo", "adapt_after")
    go_on(args, dann, kind, data, seed, recovery if uses_labels else None, [pruning])
    if method == "adapt_after":
        train(args, dann, "dann", data, seed)
    return dann, pruning.report, recovery


class TrueLabels(keras_pcp.PseudoLabels):
    """The true labels instead, all of them used: what pruning could do if the target had labels."""

    def assign(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.true_labels), np.ones(len(outputs), "float32")


def measured(dann: keras_pcp.adaptation.DANN, data: dict) -> dict[str, float]:
    """Accuracies on the test images, and how well a linear classifier distinguishes the domains by the features."""
    apart = [dann.features.predict(x, batch_size=500, verbose=0) for x, _ in (data["source_test"], data["target_test"])]
    domain = np.repeat([0, 1], [len(a) for a in apart])
    values = np.concatenate(apart)
    order = np.random.default_rng(0).permutation(len(values))
    half = len(order) // 2
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    told = judge.fit(values[order[:half]], domain[order[:half]]).score(values[order[half:]], domain[order[half:]])
    return {
        "target_acc": accuracy(dann.classifier, *data["target_test"]),
        "source_acc": accuracy(dann.classifier, *data["source_test"]),
        "domains_told_apart": round(told, 4),
        "proxy_a_distance": round(2 * (2 * told - 1), 4),
    }


def prepared(args: argparse.Namespace) -> dict:
    """Loads both domains and holds out samples."""
    source, target, source_test, target_test = load_domains(args.source, args.target, args.data_dir)
    source, source_val = hold_out(*source, HELD_OUT)
    target, target_val = hold_out(*target, HELD_OUT)
    return {
        "source": source,
        "source_val": source_val,
        "source_test": source_test,
        "target": target[0],
        "target_labels": target[1],
        "target_val": target_val,
        "target_test": target_test,
        "classes": int(source[1].max()) + 1,
    }


def make_parser(description: str) -> argparse.ArgumentParser:
    """Returns the options, which `plot_domains.py` has too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="mnist", help="a set of tensorflow-datasets, a folder, or digits")
    parser.add_argument("--target", default="mnist_m", help="the same; with _m appended, blended with photographs")
    parser.add_argument("--data-dir")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--targets", default="0.25,0.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--prune-epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate; a fifth of it while pruning")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--cache", type=Path, default=Path(), help="folder for the trained networks")
    parser.add_argument("--out", type=Path)
    return parser


def main():
    args = make_parser(__doc__).parse_args()
    data = prepared(args)
    fields = (
        "source",
        "target",
        "epochs",
        "prune_epochs",
        "rate",
        "threshold",
        "criterion",
        "method",
        "macs_limit",
        "seed",
    )
    done = {tuple(r[f] for f in fields) for r in read(args.out)}
    common = {"suite": "adaptation"} | {f: getattr(args, f) for f in fields[:6]}
    source = {
        "command": "python " + " ".join(sys.argv),
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
    }
    limits = [(1.0, args.kinds), *((float(limit), args.methods) for limit in args.targets.split(","))]
    cases = [
        (int(s), limit, m) for s in args.seeds.split(",") for limit, found in limits for m in found.split(",") if m
    ]
    for seed, limit, method in cases:
        criterion = criterion_of(args, method) if limit < 1 else None
        row = common | {"criterion": criterion, "method": method, "macs_limit": limit, "seed": seed}
        if tuple(row[f] for f in fields) in done:
            continue
        started = time.perf_counter()
        if limit == 1:
            dann, more = unpruned(args, method, data, seed), {"macs": 1.0}
        else:
            dann, report, labels = prune(args, method, limit, data, seed)
            more = {
                "macs": round(report.after["macs"] / report.before["macs"], 4),
                "seconds": round(time.perf_counter() - started, 1),
                "pseudo_labels": labels.history[-1:],
                "widths": {name: now for name, (_, now) in report.widths.items()},
            }
        write(row | more | source | measured(dann, data), args.out)
        keras.backend.clear_session()


if __name__ == "__main__":
    main()

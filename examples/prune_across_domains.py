"""Trains a classifier for a domain without labels, prunes it for that domain, and exports the label path to LiteRT.

    python examples/prune_across_domains.py    # handwritten digits from scikit-learn; target: blended with photographs
    python examples/prune_across_domains.py --source mnist --target mnist_m    # sets of tensorflow-datasets
    python examples/prune_across_domains.py --source DIR --target DIR          # folders with a folder for each class

Prints the accuracy on test images of both domains. The labels of the target are used only for that.
"""

import argparse
import tempfile
from pathlib import Path

import keras
from domains import load_domains
from image_data import hold_out
from keras import layers

import keras_pcp


def digit_network(classes: int, domain_head: keras.Layer | None = None) -> keras_pcp.adaptation.DANN:
    """The network for MNIST of Ganin et al. (2016, arXiv 1505.07818, figure 4a)."""
    inputs = keras.Input((28, 28, 3))
    x = layers.Rescaling(2.0, -1.0)(inputs)
    for filters in (32, 48):
        x = layers.MaxPooling2D()(layers.Conv2D(filters, 5, activation="relu")(x))
    features = keras.Model(inputs, layers.Flatten()(x), name="features")
    dense = [layers.Dense(100, activation="relu"), layers.Dense(100, activation="relu")]
    label_head = keras.Sequential([*dense, layers.Dense(classes)], name="label_head")
    adversary = keras.Sequential([layers.Dense(100, activation="relu"), layers.Dense(1)], name="domain_head")
    return keras_pcp.adaptation.DANN(features, label_head, domain_head or adversary)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="digits")
    parser.add_argument("--target", default="digits_m")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--prune-epochs", type=int, default=20)
    parser.add_argument("--max-macs", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "domains.tflite")
    args = parser.parse_args()
    source, target, *tests = load_domains(args.source, args.target, args.data_dir)
    source, source_val = hold_out(*source, len(source[0]) // 8)
    target, target_val = hold_out(*target, len(target[0]) // 8)

    keras.utils.set_random_seed(0)
    dann = digit_network(int(source[1].max()) + 1)

    def compiled(rate, epochs):
        steps = epochs * -(-max(len(source[0]), len(target[0])) // 64)
        dann.compile(keras.optimizers.SGD(keras_pcp.adaptation.AnnealedLearningRate(rate, steps), momentum=0.9))

    def tell(when):
        found = [(dann.classifier.predict(x, verbose=0).argmax(-1) == y).mean() for x, y in tests]
        macs = keras_pcp.count_cost(dann.classifier).macs
        print(
            f"{when}: source {found[0]:.3f}, target {found[1]:.3f}, {macs / 1e6:.2f} M multiply-accumulates", flush=True
        )

    compiled(0.01, args.epochs)
    dann.fit(source, target[0], epochs=args.epochs, verbose=0, callbacks=[keras_pcp.adaptation.ReversalSchedule()])
    tell("trained")
    pruning = keras_pcp.ProgressivePruning(
        max_macs=args.max_macs,
        criterion="taylor",
        deliver=dann.classifier,
        validation_data=dann.validation_data(source_val, target_val[0]),
    )
    labels = keras_pcp.PseudoLabels(true_labels=target[1])
    compiled(0.005, args.prune_epochs)
    dann.fit(source, target[0], epochs=args.prune_epochs, verbose=0, pseudo_labels=labels, callbacks=[pruning])
    tell("pruned")
    last = labels.history[-1]
    print(f"pseudo-labels in the last epoch: {last['passed']:.0%} used, {last.get('right', 0):.0%} of them right")
    print(keras_pcp.export_litert(dann.classifier, args.out, representative_data=target_val[0][:16]))


if __name__ == "__main__":
    main()

"""What the correction of a cut gives back before any training: error of the next layers' outputs, and accuracy.

    python benchmarks/correction.py --model resnet20_cifar10.keras --data cifar10 --held-out test \
        --out benchmarks/results/correction.jsonl

Removes the same fraction of every group at once. The corrected weights are solved on some training images, without labels.
The error is measured on validation images: the mean squared error of the outputs of the layers that read removed channels,
in units of the mean square of the outputs, as a mean over the layers. Accuracy is given as it is right after the cut, and
with re-estimated statistics of batch normalization.
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np
from rows import write
from trained_model import accuracy, add_arguments, opened, prepared

import keras_pcp
from keras_pcp.graph.weight_masks import consumer_masks, weight_masks
from keras_pcp.repair.closed_form import corrected


def pruned(model, graph, selection, values):
    """Returns a pruned copy in which some weights of the unpruned model have other values."""
    small, masks = keras_pcp.prune_model(model, graph, selection), weight_masks(graph, selection)
    for i, value in values.items():
        for axis, mask in masks.get(i, {}).items():
            value = np.compress(mask, value, axis)
        small.weights[i].assign(value)
    return small


def output_error(model, values, x):
    """Returns the mean over the layers of the error of their outputs if their kernels have other values."""
    errors = []
    for i, value in values.items():
        (layer,) = (one for one in model.layers if getattr(one, "kernel", None) is model.weights[i])
        read = keras.Model(model.input, layer.input).predict(x, verbose=0)
        old, bias = layer.kernel.numpy(), layer.bias.numpy() if layer.use_bias else 0.0
        outputs = []
        for kernel in (old, value - old):
            layer.kernel.assign(kernel)
            outputs.append(np.asarray(layer(read)) - bias)  # these layers have no activation
        layer.kernel.assign(old)
        errors.append(np.square(outputs[1]).mean() / np.square(outputs[0]).mean())
    return float(np.mean(errors))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--criteria", default="orthogonality,l1")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=256, help="training images on which weights are solved")
    args = parser.parse_args()
    (x, _), val, _ = prepared(args)
    model = opened(args)
    graph = keras_pcp.build_graph(model)
    for criterion in args.criteria.split(","):
        scores = keras_pcp.score_channels(model, graph, criterion)
        selection = keras_pcp.select_by_ratio(graph, scores, args.ratio, scope="local")
        readers = consumer_masks(graph, selection)
        values, _ = corrected(model, readers, x[: args.samples])
        kernels = {i: value for i, value in values.items() if i in readers}
        removed = {i: model.weights[i].numpy() * readers[i] for i in kernels}
        row = {
            "suite": "correction",
            "model": Path(args.model).stem,
            "data": args.data,
            "criterion": criterion,
            "ratio": args.ratio,
            "samples": args.samples,
            "error_plain": round(output_error(model, removed, val[0][: args.samples]), 4),
            "error_corrected": round(output_error(model, kernels, val[0][: args.samples]), 4),
        }
        for name, new in (("plain", {}), ("corrected", values)):
            small = pruned(model, graph, selection, new)
            row[f"val_acc_{name}"] = accuracy(small, *val)
            keras_pcp.reestimate_batch_norm(small, x[:2000])
            row[f"val_acc_{name}_reestimated"] = accuracy(small, *val)
        row["val_acc_unpruned"] = accuracy(model, *val)
        row["versions"] = {"keras": keras.__version__}
        row["command"] = "python " + " ".join(sys.argv)
        write(row, args.out)


if __name__ == "__main__":
    main()

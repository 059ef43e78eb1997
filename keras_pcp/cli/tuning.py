"""Prunes a classifier with data, for the command: while it trains, or by a search, a refit and new statistics."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_pcp import strategies
from keras_pcp.cli.data import Data, read
from keras_pcp.cli.table import compared
from keras_pcp.deliver.litert import Quantization, export_litert, run_file
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.fit.callback import Pruning
from keras_pcp.graph.build import build_graph
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.graph.trace import trace
from keras_pcp.repair.batch_norm import reestimate_batch_norm
from keras_pcp.repair.least_squares import refit
from keras_pcp.search.widths import search_widths
from keras_pcp.select.problem import Limits
from keras_pcp.strategies.protocol import Strategy
from keras_pcp.support.files import replacing
from keras_pcp.surgery.copies import prune_model

METHODS: dict[str, Callable[..., Strategy]] = {
    "progressive": strategies.Progressive,
    "adaptive": strategies.Adaptive,
    "one-shot": strategies.OneShot,
}
_END = 0.5  # pruning takes the first half of the training
_SAMPLES, _OF_FILE = 2048, 1000  # training samples for refit and calibration; test samples that a LiteRT file is run on
_EPOCHS, _BATCH, _RATE = 3, 32, 1e-3


def prune_and_tune(
    model: keras.Model,
    args: argparse.Namespace,
    options: Mapping[str, Any],
    target: Path,
    tflite: Path | None,
) -> None:
    """Prunes and trains a classifier, writes it, and prints what it was and is.

    Args:
        model: a loaded model.
        args: options of the command; those that are not given are None.
        options: options of `Pruning`, such as limits.
        target, tflite: files to write.
    """
    seed, size, rate = args.seed or 0, args.batch_size or _BATCH, args.learning_rate or _RATE
    epochs = _EPOCHS if args.tune_epochs is None else args.tune_epochs
    Limits(options["max_macs"], options["max_params"], options["max_bytes"])  # a bad one is said before the work
    keras.utils.set_random_seed(seed)
    data = read(args.data, model, batch_size=size, pixels=args.pixels, data_dir=args.data_dir, seed=seed)
    compile_classifier(model, rate, data.batches * epochs, data.classes)
    if args.flip and len(model.inputs[0].shape) != 4:
        raise InvalidArgumentError(
            f"--flip is for images, and the model takes inputs of shape {model.inputs[0].shape[1:]}"
        )
    if not args.quiet:
        print(data.text)
    before, notes = _figures(model, data), count_cost(model).notes()
    method = METHODS[args.method or "progressive"](min_channels=args.min_channels, multiple_of=args.multiple_of)
    if epochs:
        train = data.train.map(_flipped) if args.flip else data.train
        pruning = Pruning(
            method,
            **options,
            begin=0.0,
            end=_END,
            validation_data=data.val,
            refit_data=_first(data.train, _SAMPLES) if args.refit else None,
        )
        verbose = 0 if args.quiet else 1 if sys.stdout.isatty() else 2
        model.fit(train, epochs=epochs, shuffle=False, verbose=verbose, callbacks=[pruning])
    else:
        model = _searched(model, data, method, options, not args.quiet)
    after = _figures(model, data)
    with replacing(target) as part:
        model.save(part)
    print(compared(before, after))
    print("".join(f"note: {note}\n" for note in notes), end="")
    print(f"wrote {target}")
    if tflite:
        _write_file(model, tflite, data, args.quantization)


def _searched(
    model: keras.Model, data: Data, method: Strategy, options: Mapping[str, Any], verbose: bool
) -> keras.Model:
    """Prunes without training: returns a copy with widths by a search, refit, with new statistics."""
    some = _first(data.train, _SAMPLES)
    selection = search_widths(
        model, **options, validation_data=data.val, strategy=method, refit_data=some, verbose=verbose
    )
    graph = build_graph(model, on_unknown=options["on_unknown"], frozen_layers=options["frozen_layers"])
    small = prune_model(model, graph, selection)
    refit(model, small, graph, selection, some)
    reestimate_batch_norm(small, some)
    compile_classifier(small, _RATE, 1, data.classes)
    return small


def _figures(model: keras.Model, data: Data) -> dict[str, float]:
    cost = count_cost(model)
    accuracy = model.evaluate(data.test, verbose=0, return_dict=True)["accuracy"]
    return {"test accuracy": float(accuracy), "MACs": cost.macs, "parameters": cost.params}


def _write_file(model: keras.Model, path: Path, data: Data, quantization: Quantization | None) -> None:
    x, _ = _first(data.train, _SAMPLES)
    file = export_litert(model, path, quantization=quantization, representative_data=x)
    x, y = _first(data.test, _OF_FILE)
    (outputs,) = run_file(path.read_bytes(), [x])
    logits = model.loss.from_logits
    found = outputs.argmax(-1) if outputs.shape[-1] > 1 else outputs[:, 0] > (0.0 if logits else 0.5)
    print(
        f"wrote {path}: {file.bytes:,} bytes, {quantization or 'float32'}; accuracy of the file "
        f"{np.mean(found == y):.4f} on {len(y):,} test samples"
    )


def compile_classifier(model: keras.Model, rate: float, steps: int, classes: int) -> None:
    """Compiles a classifier for whole numbers as labels. Its last layer says what the outputs are.

    Args:
        model: a classifier.
        rate: the first learning rate of Adam, which falls to 0 as a cosine.
        steps: training steps.
        classes: number of classes in the data.

    Raises:
        InvalidArgumentError: the model has not one output of classes, or it is not clear what it is.
    """
    traced = trace(model)
    shape = traced.tensors[traced.outputs[0]].shape
    if len(traced.outputs) != 1 or len(shape) != 2:
        raise InvalidArgumentError(
            f"model {model.name!r} has {len(traced.outputs)} outputs, the first of shape {tuple(shape)}; --data takes "
            "classifiers with one output (batch, classes). Use keras_pcp.ProgressivePruning in your own fit"
        )
    last = next(call.operation for call in traced.calls if traced.outputs[0] in call.outputs)
    activation = "softmax" if isinstance(last, keras.layers.Softmax) else getattr(last, "activation", None)
    name = activation if isinstance(activation, str) else getattr(activation, "__name__", "unknown")
    one = shape[-1] == 1
    if name not in ("linear", "sigmoid" if one else "softmax"):
        raise InvalidArgumentError(
            f"the last layer {last.name!r} of model {model.name!r} has the activation {name!r}, so its loss is not clear; "
            "--data takes softmax (for one output: sigmoid), or no activation, for logits"
        )
    if classes > (2 if one else shape[-1]):
        raise InvalidArgumentError(f"the data has {classes} classes, but model {model.name!r} has {shape[-1]} outputs")
    logits = name == "linear"
    kind = keras.losses.BinaryCrossentropy if one else keras.losses.SparseCategoricalCrossentropy
    metric = keras.metrics.BinaryAccuracy("accuracy", threshold=0.0 if logits else 0.5) if one else "accuracy"
    schedule = keras.optimizers.schedules.CosineDecay(rate, max(1, steps))
    model.compile(keras.optimizers.Adam(schedule), kind(from_logits=logits), metrics=[metric])


def _first(samples: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns some samples of a dataset of batches as arrays."""
    x, y = next(iter(samples.unbatch().take(count).batch(count).as_numpy_iterator()))
    return x, y


def _flipped(x: Any, y: Any) -> tuple[Any, Any]:
    return tf.image.random_flip_left_right(x), y

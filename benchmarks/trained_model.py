"""The trained classifier that a benchmark prunes, and its data; what the benchmarks on one have in common."""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from image_data import Arrays, hold_out, load

L = keras.layers
HELD_OUT = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name the model and its data."""
    parser.add_argument("--model", required=True, help="a .keras file, or 'vgg' for a small one trained at once")
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--width", type=int, default=16, help="channels of the first convolution of 'vgg'")
    parser.add_argument("--scratch", action="store_true", help="start from random weights, drawn by the seed")
    held_out = "where validation images come from; 'test' for a model that has seen all training images"
    parser.add_argument("--held-out", choices=("train", "test"), default="train", help=held_out)
    parser.add_argument("--mean", type=float, default=0.0)
    parser.add_argument("--std", type=float, default=1.0)
    parser.add_argument("--begin", type=float, default=0.0)
    parser.add_argument("--end", type=float, default=0.3)
    parser.add_argument("--out", type=Path)


def prepared(args: argparse.Namespace) -> tuple[Arrays, Arrays, Arrays]:
    """Returns normalized training, validation and test data. Validation images are held out of one of the other two."""
    (x, y), (x_test, y_test) = load(args.data, args.data_dir)
    train, test = ((x - args.mean) / args.std, y), ((x_test - args.mean) / args.std, y_test)
    if args.held_out == "test":
        test, val = hold_out(*test, HELD_OUT)
    else:
        train, val = hold_out(*train, min(HELD_OUT, len(x) // 6))
    data = train, val, test
    if args.model == "vgg" and not args.scratch and not vgg_file(args).exists():
        train_vgg(*train, args.width).save(vgg_file(args))
    return data


def vgg_file(args: argparse.Namespace) -> Path:
    """Where the network trained here is kept between runs."""
    return Path(f"vgg_{args.width}_{args.data}_{args.mean:g}_{args.std:g}.keras")


def opened(args: argparse.Namespace) -> keras.Model:
    """Loads the model; its outputs must be logits."""
    model = keras.models.load_model(vgg_file(args) if args.model == "vgg" else args.model, compile=False)
    if getattr(model.layers[-1], "activation", None) is not keras.activations.linear:
        raise SystemExit(f"the outputs of {args.model} must be logits: a last layer without activation")
    return model


def vgg(shape: tuple[int, ...], classes: int, width: int) -> keras.Model:
    """Returns a plain network of six convolutions and a dense layer with batch normalization."""
    i = keras.Input(shape)
    h = i
    for stage in range(3):
        for _ in range(2):
            h = L.Conv2D(width * 2**stage, 3, padding="same", use_bias=False)(h)
            h = L.ReLU()(L.BatchNormalization()(h))
        h = L.MaxPooling2D()(h)
    h = L.ReLU()(L.BatchNormalization()(L.Dense(4 * width, use_bias=False)(L.Flatten()(h))))
    return keras.Model(i, L.Dense(classes)(h), name="vgg")


def fresh(args: argparse.Namespace, x: np.ndarray, y: np.ndarray) -> keras.Model:
    """Returns the model with random weights."""
    if args.model == "vgg":
        return vgg(x.shape[1:], int(y.max()) + 1, args.width)
    return keras.models.clone_model(opened(args))


def train_vgg(x: np.ndarray, y: np.ndarray, width: int, epochs: int = 8) -> keras.Model:
    """Returns that network, trained."""
    keras.utils.set_random_seed(0)
    model = vgg(x.shape[1:], int(y.max()) + 1, width)
    steps = len(x) // 128 * epochs
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, steps), momentum=0.9, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(batches(x, y, 128, 0, 2), epochs=epochs, verbose=0)
    return model


def batches(x: np.ndarray, y: np.ndarray, size: int, seed: int, shift: int, flip: bool = False) -> tf.data.Dataset:
    """Shuffled batches, shifted by up to some pixels (one shift a batch) and, where that keeps the label, flipped."""

    def augment(images, labels):
        images = tf.image.random_flip_left_right(images, seed=seed) if flip else images
        padded = tf.pad(images, [[0, 0], [shift] * 2, [shift] * 2, [0, 0]], constant_values=float(x.min()))
        return tf.image.random_crop(padded, tf.shape(images), seed=seed), labels

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    # Not in parallel: then which batch gets which shift would differ between two runs with one seed.
    return untuned(data.batch(size, drop_remainder=True).map(augment).prefetch(2))


def untuned(data: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the dataset without autotuning.

    The thread that tunes a dataset sleeps for twice as long after every look. What ends it may come between its look at
    the flag and its sleep (tensorflow 2.21, `Model::OptimizeLoop`). Then the end of an epoch waits for it: an epoch of
    25 seconds took 41.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of the samples that the model classifies rightly."""
    images = untuned(tf.data.Dataset.from_tensor_slices(x).batch(500))
    return float(np.mean(model.predict(images, verbose=0).argmax(-1) == y))

"""Labelled images or arrays for the command: a set of tensorflow-datasets, a folder of images, or a .npz file."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.trace import trace

# Pixel values that a model was trained on: factor and offset from 0..255.
PIXELS = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, -1.0)}
_HELD_OUT = 5000  # validation samples at most
_MIXED = 4096  # samples that are mixed at a time; of images, the encoded bytes
_PARTS = ("test", "val", "validation")  # folders whose images are not trained on


@dataclass(frozen=True)
class Data:
    """Batches (x, y), y whole numbers.

    Attributes:
        train: training samples, in another order in every epoch.
        val: samples that choose the widths.
        test: samples for the accuracies that are shown.
        batches, classes: number of training batches, and of classes.
        text: what was read.
    """

    train: tf.data.Dataset
    val: tf.data.Dataset
    test: tf.data.Dataset
    batches: int
    classes: int
    text: str


@dataclass(frozen=True)
class _Part:
    """Samples, one by one, before images are decoded.

    Attributes:
        samples: what `load` takes.
        count, classes: number of samples, and of classes.
        load: function from a sample to (x, y); pixels of images are in 0..255.
    """

    samples: tf.data.Dataset
    count: int
    classes: int
    load: Callable

    def split(self, count: int) -> tuple["_Part", "_Part"]:
        """Returns the first samples, and the others."""
        first, others = self.samples.take(count), self.samples.skip(count)
        return replace(self, samples=first, count=count), replace(self, samples=others, count=self.count - count)


def read(
    source: str, model: keras.Model, *, batch_size: int, pixels: str | None, data_dir: str | None, seed: int
) -> Data:
    """Reads samples for a classifier. If the source has no test samples, a tenth is kept for the test.

    Args:
        source: a .npz file with `x` and `y` (or `x_train`, `y_train`, and also `x_test`, `y_test`), which are used as they
            are; a folder with one folder of images for each class, or with such folders in `train` and `test` (or `val`); or
            the name of an image-classification set of tensorflow-datasets.
        model: says the size of the images, and by a `Rescaling` layer behind the input perhaps their values.
        batch_size: samples of a batch.
        pixels: a key of `PIXELS`; None if the model says it.
        data_dir: where tensorflow-datasets keeps its data.
        seed: for the order and the split.

    Raises:
        InvalidArgumentError: there is no such source, it has no samples, labels are not whole numbers, or it is not clear
            which pixel values the model takes; or the model scales them itself, or has several inputs.
    """
    if len(model.inputs) != 1:
        raise InvalidArgumentError(
            f"model {model.name!r} has {len(model.inputs)} inputs; --data takes classifiers with one. Use "
            "keras_pcp.ProgressivePruning in your own fit"
        )
    shape = tuple(model.inputs[0].shape[1:])
    if source.endswith(".npz"):
        if pixels is not None:
            raise InvalidArgumentError(f"--pixels is for images; the arrays of {source} are used as they are")
        (train, test), prepare = _arrays(Path(source), shape), _unchanged
    else:
        prepare, size = _preparation(model, shape, pixels), _size(shape, source)
        of_images = _folder if Path(source).is_dir() else _named
        train, test = of_images(source, (*size, shape[-1]), data_dir, seed)
    test, train = train.split(train.count // 10) if test is None else (test, train)
    val, train = train.split(min(_HELD_OUT, train.count // 10))
    if not (val.count and test.count):
        raise InvalidArgumentError(
            f"{source} has {train.count + val.count + test.count} samples; at least 20 are needed"
        )

    cores, options = os.cpu_count(), tf.data.Options()
    # TensorFlow 2.21: the end of an epoch may wait for the thread that tunes, for as long as the epoch took.
    options.autotune.enabled = False

    def batches(part: _Part, mixed: bool = False) -> tf.data.Dataset:
        samples = part.samples.shuffle(min(part.count, _MIXED), seed) if mixed else part.samples
        loaded = samples.map(part.load, cores).map(lambda x, y: (prepare(x), y), cores)
        return loaded.batch(batch_size).prefetch(2).with_options(options)

    text = f"{train.count:,} training, {val.count:,} validation and {test.count:,} test samples of {source}"
    number, classes = -(-train.count // batch_size), max(train.classes, test.classes)
    return Data(batches(train, mixed=True), batches(val), batches(test), number, classes, text)


def _unchanged(*values: Any) -> Any:
    return values if values[1:] else values[0]


def _preparation(model: keras.Model, shape: tuple, pixels: str | None) -> Callable[[Any], Any]:
    """Returns the function from an image with pixels in 0..255 to what the model takes."""
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise InvalidArgumentError(
            f"model {model.name!r} takes inputs of shape {shape}, not images; pass a .npz file with x and y"
        )
    rescales = _rescales(model)
    if rescales and pixels not in (None, "0..255"):
        raise InvalidArgumentError(
            f"model {model.name!r} has a Rescaling layer behind its input, which takes pixel values in 0..255, so --pixels "
            f"{pixels} would scale them twice; leave out --pixels"
        )
    if pixels is None and not rescales:
        raise InvalidArgumentError(
            f"model {model.name!r} has no Rescaling layer behind its input, so say which pixel values it was trained on: "
            f"--pixels {', '.join(PIXELS)}"
        )
    factor, offset = PIXELS[pixels or "0..255"]
    return lambda image: tf.cast(image, tf.float32) * factor + offset


def _rescales(model: keras.Model) -> bool:
    """Returns whether what reads the input takes values in 0..255, as its factor shows."""
    traced = trace(model)
    readers = [call.operation for call in traced.calls if set(call.inputs) & set(traced.inputs)]
    return bool(readers) and all(
        isinstance(r, keras.layers.Rescaling) and np.max(np.abs(r.scale)) <= 1 / 100 for r in readers
    )


def _arrays(path: Path, shape: tuple) -> tuple[_Part, _Part | None]:
    if not path.is_file():
        raise InvalidArgumentError(f"file {path} does not exist")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy raises what its readers of zip files, headers and pickles raise
        raise InvalidArgumentError(f"{path} is not a .npz file of numbers: {error}") from error
    names = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InvalidArgumentError(f"{path} has the arrays {sorted(arrays)}; expected x and y, or x_train and y_train")
    pairs = [names] + [("x_test", "y_test")] * ({"x_test", "y_test"} <= set(arrays))
    found = [_pair(path, arrays[x], arrays[y], shape) for x, y in pairs]
    return found[0], found[1] if found[1:] else None


def _pair(path: Path, x: np.ndarray, y: np.ndarray, shape: tuple) -> _Part:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or len(x) != len(y) or y.dtype.kind not in "iub":
        raise InvalidArgumentError(
            f"{path}: y must hold one whole number, the class, for each of the {len(x)} samples, got {y.dtype} {y.shape}"
        )
    x = x[..., None] if x.ndim == len(shape) and shape[-1] == 1 else x
    if len(x.shape) != len(shape) + 1 or not all(b in (None, a) for a, b in zip(x.shape[1:], shape, strict=True)):
        raise InvalidArgumentError(f"{path}: x has the shape {x.shape}, the model takes (samples, *{shape})")
    order = np.random.default_rng(0).permutation(len(x))
    samples = tf.data.Dataset.from_tensor_slices((x[order].astype("float32"), y[order].astype("int64")))
    return _Part(samples, len(x), int(y.max(initial=0)) + 1, _unchanged)


def _folder(source: str, shape: tuple, data_dir: str | None, seed: int) -> tuple[_Part, _Part | None]:
    """Reads a folder of images. `data_dir` is not used."""
    folder = Path(source)
    tests = [folder / name for name in _PARTS if (folder / name).is_dir()]
    if (folder / "train").is_dir() and tests:
        return _images(folder / "train", shape, seed), _images(tests[0], shape, seed)
    return _images(folder, shape, seed), None


def _images(folder: Path, shape: tuple, seed: int) -> _Part:
    try:
        listed = keras.utils.image_dataset_from_directory(folder, batch_size=None, shuffle=False, verbose=False)
    except ValueError as error:
        raise InvalidArgumentError(f"{folder} holds no folders of images, one for each class: {error}") from error
    names = list(listed.class_names)
    classes = [names.index(Path(path).relative_to(folder).parts[0]) for path in listed.file_paths]
    order = np.random.default_rng(seed).permutation(len(classes))
    paths, labels = np.array(listed.file_paths)[order], np.array(classes, "int64")[order]

    def load(path, label):
        return _decoded(tf.io.read_file(path), shape), label

    return _Part(tf.data.Dataset.from_tensor_slices((paths, labels)), len(labels), len(names), load)


def _decoded(encoded: Any, shape: tuple) -> Any:
    """Returns an image of the size and the channels of a shape, float32 in 0..255."""
    found = tf.io.decode_image(encoded, channels=shape[-1], expand_animations=False)
    found.set_shape((None, None, shape[-1]))
    return tf.image.resize(found, shape[:2])


def _named(source: str, shape: tuple, data_dir: str | None, seed: int) -> tuple[_Part, _Part | None]:
    """Reads a set of tensorflow-datasets. Its order is a mixed one, so `seed` is not used."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InvalidArgumentError(
            f"there is no folder {source}; for a set of tensorflow-datasets, pip install 'keras-pcp[datasets]' ({error})"
        ) from error
    try:
        builder = tfds.builder(source, data_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:  # builders raise many classes
        reason = str(error).strip().partition("\n")[0]
        raise InvalidArgumentError(f"{source} is neither a folder nor a set that can be read: {reason}") from error
    if not {"image", "label"} <= set(builder.info.features):
        raise InvalidArgumentError(
            f"{source} is no image-classification set: its features are {', '.join(builder.info.features)}"
        )
    encoded = {"image": tfds.decode.SkipDecoding()}

    def load(example):
        return _decoded(example["image"], shape), example["label"]

    def part(split):
        samples = builder.as_dataset(split=split, shuffle_files=False, decoders=encoded)
        return _Part(samples, builder.info.splits[split].num_examples, builder.info.features["label"].num_classes, load)

    return part("train"), part("test") if "test" in builder.info.splits else None


def _size(shape: tuple, source: Any) -> tuple[int, int]:
    if None in shape:
        raise InvalidArgumentError(
            f"the model takes images of any size, {shape}, so {source} cannot be resized to it; save the model with a fixed "
            "input size"
        )
    return shape[0], shape[1]

"""Image-classification data for the examples and benchmarks: scikit-learn, tensorflow-datasets, or folders of images."""

from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


def load(name: str, data_dir: str | None = None, size: int = 64) -> tuple[Arrays, Arrays]:
    """Returns (x_train, y_train), (x_test, y_test): float32 images in [0, 1] with a channel axis, int64 labels.

    Args:
        name: `"digits"`, the 1,797 real handwritten 8x8 digits that ship with scikit-learn, or the name of an
            image-classification set of tensorflow-datasets, such as `"mnist"`, `"fashion_mnist"` or `"cifar10"`; or a
            folder with one folder of images for each class, of which a fifth is kept for the test.
        data_dir: where tensorflow-datasets looks for prepared data before it downloads any.
        size: height and width to use if images differ in size.
    """
    if Path(name).is_dir():
        return _folder(name, size)
    if name == "digits":
        return _digits()
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    if not {"image", "label"} <= set(builder.info.features):
        raise SystemExit(f"{name} is not an image-classification set: its features are {list(builder.info.features)}")
    splits = ["train", "test"] if "test" in builder.info.splits else ["train[:80%]", "train[80%:]"]
    varying = None in builder.info.features["image"].shape[:2]

    def prepare(example):
        image = tf.cast(example["image"], tf.float32) / 255.0
        return (tf.image.resize(image, (size, size)) if varying else image), example["label"]

    needed, found = tfds.decode.PartialDecoding({"image": True, "label": True}), []
    for split in splits:
        examples = builder.as_dataset(split=split, shuffle_files=False, decoders=needed)
        pairs = list(tfds.as_numpy(examples.map(prepare)))
        found.append((np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs], "int64")))
    return found[0], found[1]


def _folder(name: str, size: int) -> tuple[Arrays, Arrays]:
    import keras

    parts = keras.utils.image_dataset_from_directory(
        name, image_size=(size, size), batch_size=None, validation_split=0.2, subset="both", seed=0, verbose=False
    )
    found = []
    for part in parts:
        pairs = list(part.as_numpy_iterator())
        found.append((np.stack([x for x, _ in pairs]) / np.float32(255), np.array([y for _, y in pairs], "int64")))
    return found[0], found[1]


def hold_out(x: np.ndarray, y: np.ndarray, count: int, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Splits off `count` random samples: returns (x_train, y_train), (x_val, y_val)."""
    order = np.random.default_rng(seed).permutation(len(x))
    train, val = np.sort(order[count:]), np.sort(order[:count])
    return (x[train], y[train]), (x[val], y[val])


def _digits() -> tuple[Arrays, Arrays]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images / 16.0)[..., None].astype("float32"), digits.target.astype("int64")
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order[:1400]], y[order[:1400]]), (x[order[1400:]], y[order[1400:]])

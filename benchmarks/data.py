"""Image-classification data for benchmarks and examples, from tensorflow-datasets or scikit-learn."""

import numpy as np


def load(name: str, data_dir: str | None = None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns (x_train, y_train), (x_test, y_test): float32 images in [0, 1] with a channel axis, int64 labels.

    `digits` is the set of 1,797 real 8x8 digits that ships with scikit-learn; every other name is looked up in
    tensorflow-datasets, under `data_dir` if it is there, downloaded otherwise.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, y = (digits.images / 16.0)[..., None].astype("float32"), digits.target.astype("int64")
        order = np.random.default_rng(0).permutation(len(x))
        train, test = order[:1400], order[1400:]
        return (x[train], y[train]), (x[test], y[test])
    import tensorflow_datasets as tfds

    splits = []
    for split in ("train", "test"):
        data = tfds.as_numpy(tfds.load(name, split=split, data_dir=data_dir, batch_size=-1, as_supervised=False))
        splits.append((data["image"].astype("float32") / 255.0, data["label"].astype("int64")))
    return splits[0], splits[1]


def hold_out(x: np.ndarray, y: np.ndarray, count: int, seed: int = 0):
    """Splits off `count` random validation samples: returns (x_train, y_train), (x_val, y_val)."""
    order = np.random.default_rng(seed).permutation(len(x))
    train, val = np.sort(order[count:]), np.sort(order[:count])
    return (x[train], y[train]), (x[val], y[val])

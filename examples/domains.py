"""Pairs of data sets of the same classes that look different, for domain adaptation."""

import numpy as np
from image_data import Arrays, load

SIZE = 28


def load_domains(source: str, target: str, data_dir: str | None = None) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """Returns (x, y) of the source and the target for training, then for the test: float32 (count, 28, 28, 3) in [0, 1].

    Args:
        source, target: names as in `image_data.load`; with "_m" behind it, blended with photographs, as MNIST-M is. The
            images of a set and of its "_m" are then different ones: half of the training images each.
        data_dir: where tensorflow-datasets looks for prepared data.
    """
    found = []
    for number, name in enumerate((source, target)):
        train, test = load(name.removesuffix("_m"), data_dir, SIZE)
        if source.removesuffix("_m") == target.removesuffix("_m"):
            train = tuple(a[number::2] for a in train)
        sets = [(_colour_images(x), y) for x, y in (train, test)]
        if name.endswith("_m"):
            sets = [(blended(x, part), y) for (x, y), part in zip(sets, ("train", "test"), strict=True)]
        found.append(sets)
    return found[0][0], found[1][0], found[0][1], found[1][1]


def _colour_images(x: np.ndarray) -> np.ndarray:
    """Scales images to 28 x 28 and repeats a single channel three times."""
    import tensorflow as tf

    if x.shape[1:3] != (SIZE, SIZE):
        x = tf.image.resize(x, (SIZE, SIZE)).numpy()
    return np.repeat(x, 3 // x.shape[-1], axis=-1)


def blended(x: np.ndarray, part: str, seed: int = 0) -> np.ndarray:
    """Blends images with photographs as MNIST-M does: |image - patch|, a random patch for each image.

    MNIST-M (Ganin et al., JMLR 2016) takes its patches from BSDS500. Here they are cut from the two photographs that ship
    with scikit-learn: for "train" from their left three quarters, for "test" from the rest.
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng([seed, part == "test"])
    photos = [np.asarray(p, "float32") / 255 for p in load_sample_images().images]
    cut = photos[0].shape[1] * 3 // 4
    photos = [p[:, :cut] if part == "train" else p[:, cut:] for p in photos]
    found = np.empty_like(x)
    for i, image in enumerate(x):
        photo = photos[rng.integers(len(photos))]
        top, left = rng.integers(photo.shape[0] - SIZE), rng.integers(photo.shape[1] - SIZE)
        found[i] = np.abs(image - photo[top : top + SIZE, left : left + SIZE])
    return found

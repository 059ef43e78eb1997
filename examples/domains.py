"""Pairs of data sets of the same classes that look different, for domain adaptation."""

from pathlib import Path

import numpy as np
from image_data import Arrays, load
from photographs import photographs

SIZE = 28


def load_domains(source: str, target: str, data_dir: str | None = None) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """Returns (x, y) of source and target for training, then for testing: float32 (count, 28, 28, 3) in [0, 1].

    Args:
        source, target: names as in `image_data.load`; with "_m" appended, blended with photographs, like MNIST-M.
        data_dir: where tensorflow-datasets looks for prepared data.
    """
    found = []
    for name in (source, target):
        is_blended = name.endswith("_m") and not Path(name).is_dir()
        sets = [
            (_colour_images(x), y) for x, y in load(name.removesuffix("_m") if is_blended else name, data_dir, SIZE)
        ]
        if is_blended:
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
    """Blends images with photographs, like MNIST-M: |image - patch|, with a random patch for each image.

    MNIST-M (Ganin et al., JMLR 2016) takes its patches from the photographs of BSDS500. Here they are cut from the seven
    colour photographs that ship with scikit-learn (china, flower) and scikit-image (astronaut, cat, coffee, motorcycle,
    rocket): for "train" from the left three quarters, for "test" from the rest.
    """
    rng = np.random.default_rng([seed, part == "test"])
    photos = photographs(part)
    found = np.empty_like(x)
    for i, image in enumerate(x):
        photo = photos[rng.integers(len(photos))]
        top, left = rng.integers(photo.shape[0] - SIZE), rng.integers(photo.shape[1] - SIZE)
        found[i] = np.abs(image - photo[top : top + SIZE, left : left + SIZE])
    return found

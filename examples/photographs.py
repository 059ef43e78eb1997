"""The colour photographs that ship with scikit-learn and scikit-image."""

import numpy as np


def photographs(part: str) -> list[np.ndarray]:
    """Returns the parts of seven photographs for `"train"` or `"test"`: float32 (height, width, 3) in [0, 1]."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    more = data.astronaut(), data.cat(), data.coffee(), data.stereo_motorcycle()[0], data.rocket()
    photos = [np.asarray(p, "float32") / 255 for p in (*load_sample_images().images, *more)]
    cuts = [p.shape[1] * 3 // 4 for p in photos]
    return [p[:, :cut] if part == "train" else p[:, cut:] for p, cut in zip(photos, cuts, strict=True)]

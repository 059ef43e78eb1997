"""Images with objects in boxes, for detection and segmentation: generated shapes on photographs, or tensorflow-datasets."""

from dataclasses import dataclass

import numpy as np
from photographs import photographs

SHAPES = "ellipse", "rectangle", "triangle"


@dataclass(frozen=True, eq=False)
class Objects:
    """Images and what is on them.

    Attributes:
        images: float32 (count, size, size, 3) in [0, 1].
        boxes: for each image, float32 (objects, 4): top, left, bottom and right edge, as fractions of the image.
        labels: for each image, int64 (objects,): indices into `names`.
        names: names of the classes.
        masks: int64 (count, size, size), 0 for the background and 1 + label elsewhere; None if they are not known.
    """

    images: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    names: tuple[str, ...]
    masks: np.ndarray | None = None


def load_objects(name: str, split: str, size: int, count: int | None = None, data_dir: str | None = None) -> Objects:
    """Loads images with boxes.

    Args:
        name: `"shapes"`, or the name of a set of tensorflow-datasets with the feature `objects`, such as `"voc/2007"` or
            `"coco/2017"`.
        split: a split of that set; for shapes, `"train"` or `"test"`.
        size: height and width of the images.
        count: at most so many images; required for shapes.
        data_dir: where tensorflow-datasets looks for prepared data before it downloads any.
    """
    if name == "shapes":
        return shapes(split, size, count)
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    features = builder.info.features
    if "objects" not in features:
        raise SystemExit(f"{name} has no boxes: its features are {list(features)}")
    needed = tfds.decode.PartialDecoding({"image": True, "objects": {"bbox": True, "label": True}})
    examples = builder.as_dataset(split=split, shuffle_files=False, decoders=needed).take(
        -1 if count is None else count
    )
    images, boxes, labels = [], [], []
    for example in examples:
        images.append(tf.image.resize(example["image"], (size, size)).numpy() / np.float32(255))
        boxes.append(example["objects"]["bbox"].numpy())
        labels.append(example["objects"]["label"].numpy())
    return Objects(np.stack(images), boxes, labels, tuple(features["objects"]["label"].names))


def shapes(part: str, size: int, count: int, seed: int = 0) -> Objects:
    """Draws one to three shapes of random size and colour on each of `count` random parts of photographs.

    The photographs are those that `domains.blended` uses: for "train" their left three quarters, for "test" the rest.
    """
    rng = np.random.default_rng([seed, part == "test"])
    photos = photographs(part)
    images, masks = np.empty((count, size, size, 3), "float32"), np.zeros((count, size, size), "int64")
    boxes, labels = [], []
    for image, mask in zip(images, masks, strict=True):
        photo = photos[rng.integers(len(photos))]
        top, left = rng.integers(photo.shape[0] - size), rng.integers(photo.shape[1] - size)
        image[:] = photo[top : top + size, left : left + size]
        found = [_draw(image, mask, rng) for _ in range(rng.integers(1, 4))]
        found = [one for one in found if one]
        boxes.append(np.array([box for box, _ in found], "float32") / size)
        labels.append(np.array([label for _, label in found], "int64"))
    return Objects(images, boxes, labels, SHAPES, masks)


def _draw(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, ...], int] | None:
    """Draws a shape where there is none yet; returns its box in pixels and its label, or None if there was no room."""
    from skimage import draw

    size = len(image)
    height, width = rng.integers(size // 6, size // 2, 2)
    top, left = rng.integers(size - height), rng.integers(size - width)
    if mask[top : top + height, left : left + width].any():
        return None
    label = int(rng.integers(len(SHAPES)))
    if SHAPES[label] == "ellipse":
        centre = top + (height - 1) / 2, left + (width - 1) / 2
        rows, columns = draw.ellipse(*centre, height / 2, width / 2, shape=mask.shape)
    else:
        across = [left, left + width - 1]
        if SHAPES[label] == "triangle":
            corners = [top, top + height - 1, top + height - 1], [left + width // 2, *across]
        else:
            corners = [top, top, top + height - 1, top + height - 1], [*across, *across[::-1]]
        rows, columns = draw.polygon(*corners, shape=mask.shape)
    shade = rng.uniform(0.6, 1.0)  # the photograph still shows a little
    image[rows, columns] = (1 - shade) * image[rows, columns] + shade * rng.uniform(0, 1, 3)
    mask[rows, columns] = 1 + label
    return (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1), label

"""A single-shot detector (Liu et al., SSD, ECCV 2016, arXiv 1512.02325) for small images, and its mean average precision.

Differs from SSD: a smaller backbone with batch normalization; two scales; every class has a score of its own, trained with
the focal loss (Lin et al. 2017, arXiv 1708.02002) instead of softmax with hard negatives.
"""

import contextlib
import io

import keras
import numpy as np
from keras import layers
from objects import Objects

STRIDES = 8, 16
SIZES = (0.2, 0.28), (0.36, 0.46)  # of the anchors of each stride, as fractions of the image
RATIOS = 0.5, 1.0, 2.0
SPREAD = np.array([0.1, 0.1, 0.2, 0.2], "float32")  # offsets are divided by it, as in SSD


def single_shot_detector(size: int, classes: int, width: int = 16) -> keras.Model:
    """Returns a model with the outputs `boxes` (batch, anchors, 4), offsets from anchors, and `classes`, logits."""

    def conv(x, filters, strides=1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input((size, size, 3))
    x, scales = conv(inputs, width, 2), []
    for stride in (4, 8, 16):
        x = conv(conv(x, width * stride // 2, 2), width * stride // 2)
        scales += [x] if stride in STRIDES else []
    each, rare = len(SIZES[0]) * len(RATIOS), keras.initializers.Constant(-4.0)
    boxes, scores = [], []
    for x in scales:
        x = conv(x, 4 * width)
        boxes.append(layers.Reshape((-1, 4))(layers.Conv2D(each * 4, 3, padding="same")(x)))
        score = layers.Conv2D(each * classes, 3, padding="same", bias_initializer=rare)(x)
        scores.append(layers.Reshape((-1, classes))(score))
    outputs = {
        "boxes": layers.Concatenate(axis=1, name="boxes")(boxes),
        "classes": layers.Concatenate(axis=1, name="classes")(scores),
    }
    return keras.Model(inputs, outputs, name="detector")


def compile_detector(model: keras.Model, rate: float, steps: int) -> None:
    """Compiles with the losses that `targets` is made for."""
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        {
            "boxes": keras.losses.Huber(delta=1.0),
            "classes": keras.losses.BinaryFocalCrossentropy(True, from_logits=True),
        },
    )


def anchors(size: int) -> np.ndarray:
    """Returns the anchors in the order of the model's outputs: (anchors, 4), centre row and column, height, width."""
    found = []
    for stride, sizes in zip(STRIDES, SIZES, strict=True):
        cells = -(-size // stride)
        centres = (np.arange(cells) + 0.5) / cells
        shapes = np.array([(s / r**0.5, s * r**0.5) for s in sizes for r in RATIOS])
        grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 1, 2)
        grid, shapes = np.broadcast_arrays(grid, shapes)
        found.append(np.concatenate([grid, shapes], -1).reshape(-1, 4))
    return np.concatenate(found).astype("float32")


def corners(boxes: np.ndarray) -> np.ndarray:
    """Turns centre and size into top, left, bottom and right edge."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([centre - size / 2, centre + size / 2], -1)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns intersection over union of all pairs of boxes, given by their edges: (len(a), len(b))."""
    edges = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = np.prod(np.maximum(edges, 0), -1)
    areas = [np.prod(one[:, 2:] - one[:, :2], -1) for one in (a, b)]
    return both / np.maximum(areas[0][:, None] + areas[1] - both, 1e-9)


def targets(objects: Objects) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns what the outputs are trained to be, and the weights of the anchors.

    An anchor stands for the object that it overlaps most, if by at least one half, and so does the best anchor of each
    object. Anchors with an overlap of 0.4 to 0.5 do not count. The losses of an image sum up to about their mean over the
    anchors that stand for objects.
    """
    each = anchors(objects.images.shape[1])
    count, names = len(each), len(objects.names)
    boxes, classes = np.zeros((len(objects.images), count, 4), "float32"), None
    classes = np.zeros((len(objects.images), count, names), "float32")
    box_weights, class_weights = np.zeros(boxes.shape[:2], "float32"), np.ones(boxes.shape[:2], "float32")
    for i, (found, labels) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
        if not len(found):
            continue
        overlap = overlaps(corners(each), found)
        of, most = overlap.argmax(1), overlap.max(1)
        class_weights[i] = (most < 0.4) | (most >= 0.5)
        of[overlap.argmax(0)], most[overlap.argmax(0)] = np.arange(len(found)), 1.0
        chosen = np.flatnonzero(most >= 0.5)
        middle = np.concatenate([(found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]], -1)[of[chosen]]
        moved = (middle[:, :2] - each[chosen, :2]) / each[chosen, 2:]
        scaled = np.log(np.maximum(middle[:, 2:], 1e-6) / each[chosen, 2:])
        boxes[i, chosen] = np.concatenate([moved, scaled], -1) / SPREAD
        classes[i, chosen, labels[of[chosen]]] = 1.0
        box_weights[i, chosen] = count / len(chosen)
        class_weights[i, chosen] = 1.0
        class_weights[i] *= 4 * count / len(chosen)
    return {"boxes": boxes, "classes": classes}, {"boxes": box_weights, "classes": class_weights}


def detections(outputs: dict[str, np.ndarray], size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns boxes (edges), scores and labels for each image, after non-maximum suppression in each class."""
    import tensorflow as tf

    each, offsets = anchors(size), np.asarray(outputs["boxes"]) * SPREAD
    centre = each[:, :2] + offsets[..., :2] * each[:, 2:]
    boxes = corners(np.concatenate([centre, each[:, 2:] * np.exp(np.minimum(offsets[..., 2:], 4.0))], -1))
    scores = 1 / (1 + np.exp(-np.asarray(outputs["classes"], "float64")))
    found = tf.image.combined_non_max_suppression(
        boxes[:, :, None].astype("float32"), scores.astype("float32"), 20, 50, iou_threshold=0.5, score_threshold=0.02
    )
    return [
        (found.nmsed_boxes[i, :n].numpy(), found.nmsed_scores[i, :n].numpy(), found.nmsed_classes[i, :n].numpy())
        for i, n in enumerate(found.valid_detections.numpy())
    ]


def mean_average_precision(found: list, objects: Objects) -> float:
    """Returns the mean average precision at an overlap of 0.5, computed by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def record(image, box, label, **more):
        top, left, bottom, right = map(float, box * 1000)  # below 32 pixels, COCO would call an object small
        area = (right - left) * (bottom - top)
        return {
            "image_id": image,
            "category_id": int(label) + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
            "iscrowd": 0,
            **more,
        }

    pairs = [
        (i, *one) for i in range(len(objects.boxes)) for one in zip(objects.boxes[i], objects.labels[i], strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(objects.images))],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(objects.names)],
            "annotations": [record(*pair, id=k + 1) for k, pair in enumerate(pairs)],
        }
        truth.createIndex()
        guesses = [
            record(i, box, label, score=float(score))
            for i, one in enumerate(found)
            for box, score, label in zip(*one, strict=True)
        ]
        if not guesses:
            return 0.0
        evaluation = COCOeval(truth, truth.loadRes(guesses), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])

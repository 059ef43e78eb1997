"""The detector of the examples: data sets, what it is trained on, what it finds, and its score."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from detector import anchors, detections, mean_average_precision, overlaps, single_shot_detector, targets
from objects import load_objects, shapes


@pytest.fixture(scope="module")
def drawn():
    return shapes("test", 96, 12)


def as_outputs(wanted):
    """Returns outputs that are sure of what they are trained to be."""
    return {"boxes": wanted["boxes"], "classes": 20 * wanted["classes"] - 10}


def test_shapes_lie_in_their_boxes_and_are_the_same_each_time(drawn):
    assert drawn.images.shape == (12, 96, 96, 3)
    assert drawn.images.min() >= 0
    assert drawn.images.max() <= 1
    for mask, boxes, labels in zip(drawn.masks, drawn.boxes, drawn.labels, strict=True):
        covered = np.zeros_like(mask, bool)
        for (top, left, bottom, right), label in zip(np.round(96 * boxes).astype(int), labels, strict=True):
            inside = mask[top:bottom, left:right] == 1 + label
            assert all(inside.any(axis)[[0, -1]].all() for axis in (0, 1)), "the box is not tight"
            covered[top:bottom, left:right] = True
        assert not mask[~covered].any()
    again, other = shapes("test", 96, 12), shapes("train", 96, 12)
    np.testing.assert_array_equal(drawn.images, again.images)
    assert not np.array_equal(drawn.images, other.images)


@pytest.mark.parametrize("name", ["voc/2007", "coco/2017"])
def test_sets_of_tensorflow_datasets_load(name, tmp_path):
    # The mock draws the number of boxes and that of labels apart, so only what does not need both is asserted.
    with tfds.testing.mock_data(num_examples=5):
        found = load_objects(name, "train", 64, count=3, data_dir=str(tmp_path))
    assert found.images.shape == (3, 64, 64, 3)
    assert found.images.dtype == "float32"
    assert 0.5 < found.images.max() <= 1
    assert len(found.names) == {"voc/2007": 20, "coco/2017": 80}[name]
    for boxes, labels in zip(found.boxes, found.labels, strict=True):
        assert boxes.shape[1:] == (4,)
        assert labels.shape[1:] == ()
        assert (labels < len(found.names)).all()


def test_boxes_and_labels_belong_to_their_images(tmp_path):
    sizes = [(80, 100, 3), (60, 40, 3)]
    boxes = [[[0.1, 0.2, 0.5, 0.6], [0.0, 0.5, 1.0, 1.0]], [[0.3, 0.3, 0.7, 0.7]]]
    labels = [[14, 3], [7]]

    def as_dataset(self, *args, **kwargs):
        def examples():
            for size, found, names in zip(sizes, boxes, labels, strict=True):
                yield {"image": np.full(size, 51, "uint8"), "objects": {"bbox": found, "label": names}}

        objects = {"bbox": tf.TensorSpec((None, 4), tf.float32), "label": tf.TensorSpec((None,), tf.int64)}
        signature = {"image": tf.TensorSpec((None, None, 3), tf.uint8), "objects": objects}
        return tf.data.Dataset.from_generator(examples, output_signature=signature)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        found = load_objects("voc/2007", "train", 64, data_dir=str(tmp_path))
    np.testing.assert_allclose(found.images, np.full((2, 64, 64, 3), 0.2), rtol=1e-5)
    for got, right in ((found.boxes, boxes), (found.labels, labels)):
        for one, other in zip(got, right, strict=True):
            np.testing.assert_allclose(one, other)
    wanted, weights = targets(found)
    assert set(np.flatnonzero(wanted["classes"][0].any(0))) == {14, 3}
    assert (wanted["boxes"][weights["boxes"] == 0] == 0).all()


def test_a_set_without_boxes_is_refused(tmp_path):
    with tfds.testing.mock_data(num_examples=2), pytest.raises(SystemExit, match="mnist has no boxes"):
        load_objects("mnist", "train", 64, data_dir=str(tmp_path))


def test_anchors_are_in_the_order_of_the_outputs():
    model = single_shot_detector(64, 3)
    shapes_of = {name: tuple(output.shape) for name, output in model.output.items()}
    assert shapes_of == {"boxes": (None, len(anchors(64)), 4), "classes": (None, len(anchors(64)), 3)}
    for layer in model.layers:  # with positive weights nothing cancels, and every unit is active
        layer.set_weights([np.abs(weight) for weight in layer.get_weights()])
    image, places = tf.Variable(tf.ones((1, 64, 64, 3))), anchors(64)[:, :2]
    corners = [i for i, place in enumerate(places) if (np.abs(place - 0.5) >= 0.375).all()]
    assert len({tuple(places[i] > 0.5) for i in corners}) == 4
    for anchor in corners:
        with tf.GradientTape() as tape:
            score = model(image)["classes"][0, anchor, 0]
        strength = tape.gradient(score, image).numpy().sum((0, 3))
        middle = [np.average(np.arange(64), weights=strength.sum(axis)) / 63 for axis in (1, 0)]
        assert ((np.array(middle) > 0.5) == (places[anchor] > 0.5)).all(), (anchor, middle)


def test_overlaps_are_intersection_over_union():
    a, b = (
        np.array([[0.0, 0.0, 2.0, 2.0]]),
        np.array([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]]),
    )
    np.testing.assert_allclose(overlaps(a, b), [[1 / 7, 1, 0]])


def test_outputs_as_they_are_wanted_score_one(drawn):
    found = detections(as_outputs(targets(drawn)[0]), 96)
    for (boxes, _, labels), wanted, right in zip(found, drawn.boxes, drawn.labels, strict=True):
        best = overlaps(wanted, boxes)
        np.testing.assert_allclose(best.max(1), 1, atol=1e-4)
        np.testing.assert_array_equal(labels[best.argmax(1)], right)
    assert mean_average_precision(found, drawn) == pytest.approx(1)


def test_boxes_elsewhere_or_of_other_classes_score_zero(drawn):
    wanted = targets(drawn)[0]
    moved = {**wanted, "boxes": wanted["boxes"] + 20}
    assert mean_average_precision(detections(as_outputs(moved), 96), drawn) < 0.01
    other = {**wanted, "classes": np.roll(wanted["classes"], 1, axis=-1)}
    assert mean_average_precision(detections(as_outputs(other), 96), drawn) < 0.2
    assert mean_average_precision([(np.zeros((0, 4)), np.zeros(0), np.zeros(0))] * 12, drawn) == 0

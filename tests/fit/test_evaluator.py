"""What attempts are judged by: the loss and the metrics of all samples, or of parts of them."""

import keras
import numpy as np
import pytest
from small_fits import compiled, data

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.fit import evaluator as evaluation
from keras_pcp.fit.evaluator import Evaluator
from keras_pcp.fit.metric import Measuring

L = keras.layers


def test_samples_are_divided_only_where_the_mean_over_chunks_is_the_metric():
    def parts(metrics, weights=None):
        model = compiled(**metrics)
        x, y = data(64, 1)
        return Evaluator(model, (x, y) if weights is None else (x, y, weights), Measuring(samples=None)).parts

    assert len(parts({"metrics": ["accuracy"]})) == 2
    assert parts({"metrics": [Peak()]}) == []
    uneven = np.linspace(0, 4, 64).astype("float32")
    assert parts({"metrics": [], "weighted_metrics": ["accuracy"]}, uneven) == []
    model = compiled(metrics=[Peak()])
    selection = keras_pcp.search_widths(model, max_macs=0.8, validation_data=data(64, 1), verbose=False)
    assert selection.num_removed > 0


class Peak(keras.metrics.Metric):
    """A metric that is no mean: the largest logit seen, called an accuracy so that it counts."""

    def __init__(self, name="accuracy"):
        super().__init__(name=name)
        self.peak = self.add_weight(name="peak", initializer="zeros")

    def update_state(self, y, predicted, sample_weight=None):
        self.peak.assign(keras.ops.maximum(self.peak, keras.ops.max(predicted)))

    def result(self):
        return self.peak + 0


def test_parts_are_small_where_a_model_has_large_tensors():
    i = keras.Input((512, 512, 3))
    x = L.Conv2D(64, 3, padding="same")(i)
    model = keras.Model(i, L.Dense(4)(L.GlobalAveragePooling2D()(L.Conv2D(64, 3, padding="same")(x))))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    evaluator = Evaluator(model, (np.zeros((2, 512, 512, 3), "float32"), np.zeros(2, int)), Measuring(samples=None))
    evaluator.count = 4096  # only counted with
    assert evaluator.chunk == 1
    assert Evaluator(compiled(), data(1024), Measuring(samples=None)).chunk == 16


def test_parts_are_about_equal_and_bounded(monkeypatch):
    def sizes(samples):
        parts = Evaluator(compiled(), data(samples), Measuring(samples=None)).parts
        assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
        return [p.stop - p.start for p in parts]

    assert sizes(272) == [6, 5, 6]  # not 8, 8, 1: a race cannot begin with one chunk
    assert set(sizes(4096)) == {16}
    monkeypatch.setattr(evaluation, "_PART_BYTES", 1)
    assert len(sizes(4096)) == 512  # chunks of one sample, eight of them at a time


def test_masked_positions_do_not_count():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 50, (64, 12))
    x[np.arange(12) >= rng.integers(2, 6, (64, 1))] = 0  # padding
    y = np.where(x == 0, 2, x % 3)
    tokens = keras.Input((12,), dtype="int32")
    hidden = L.Dense(8, activation="relu")(L.Embedding(50, 8, mask_zero=True)(tokens))
    model = compiled(keras.Model(tokens, L.Dense(3)(hidden)))
    model.fit(x, y, epochs=3, verbose=0)
    evaluator = Evaluator(model, (x, y), Measuring(samples=None))
    found = evaluator.evaluate()
    assert (found.loss, found.metric) == pytest.approx(tuple(model.evaluate(x, y, batch_size=64, verbose=0)), abs=1e-5)
    assert evaluator.parts == []
    unmasked = keras.losses.sparse_categorical_crossentropy(y, model.predict(x, verbose=0), from_logits=True)
    assert found.loss != pytest.approx(float(keras.ops.mean(unmasked)), abs=1e-3)


def test_results_of_outputs_in_a_dict_are_told_by_the_name_of_the_metric():
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 12):
        pytest.skip("early versions know outputs by their layers only")
    i = keras.Input((8,))
    model = keras.Model(i, {"box": L.Dense(4)(i), "iou": L.Dense(1)(i)})
    model.compile("sgd", {"box": "mse", "iou": "mse"}, metrics={"box": ["mae"], "iou": ["mae"]})
    x = np.random.default_rng(0).normal(size=(32, 8))
    found = Evaluator(model, (x, {"box": x[:, :4], "iou": x[:, 4:5]}), Measuring(samples=None)).evaluate()
    assert found.metric == pytest.approx(-found.loss)  # "iou_mae" is no accuracy
    model.compile("sgd", {"box": "mse", "iou": "mse"}, metrics={"iou": [keras.metrics.BinaryAccuracy(name="acc")]})
    y = (x[:, 4:5] > 0).astype(float)
    found = Evaluator(model, (x, {"box": x[:, :4], "iou": y}), Measuring(samples=None, monitor="iou_acc")).evaluate()
    predicted = model.predict(x, verbose=0)["iou"] > 0.5
    assert found.metric == pytest.approx((predicted == y).mean())


class OwnStep(keras.Model):
    """With metrics that only its own train_step and test_step bring up to date."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    @property
    def metrics(self):
        return [self.own]


def test_metrics_that_compute_metrics_leaves_alone_are_left_out():
    i = keras.Input((8,))
    model = OwnStep(i, L.Dense(4)(i))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(32, 8))
    evaluator = Evaluator(model, (x, np.arange(32) % 4), Measuring(samples=None))
    found = evaluator.evaluate()
    assert evaluator.results == ["loss"]
    assert found.metric == pytest.approx(-found.loss)


def test_a_metric_that_is_a_mean_by_chance_is_not_raced():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 1))
    i = keras.Input((1,))
    model = keras.Model(i, L.Dense(1, activation="sigmoid", kernel_initializer="ones")(i))
    y = (x > 0).astype(int)
    model.compile("sgd", "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    evaluator = Evaluator(model, (x, y), Measuring(samples=None))
    assert evaluator.evaluate().metric == pytest.approx(1.0, abs=1e-3)
    assert evaluator.parts == []
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    assert Evaluator(model, (x, y), Measuring(samples=None)).parts


def test_missing_labels_are_named():
    with pytest.raises(InvalidArgumentError, match="validation_data has no labels"):
        Evaluator(compiled(), (data(64, 1)[0], None), Measuring(samples=None))

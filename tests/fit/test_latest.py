"""The inputs of the latest training batches."""

import keras
import numpy as np
import pytest

from keras_pcp.fit import latest as module
from keras_pcp.fit.latest import Latest
from keras_pcp.repair.loss_terms import LossTerms

L = keras.layers


def model_of(*shapes, names=None, **options):
    inputs = [keras.Input(s, name=n) for s, n in zip(shapes, names or [None] * len(shapes), strict=True)]
    flat = [L.Flatten()(i) for i in inputs]
    structure = dict(zip(names, inputs, strict=True)) if names else inputs if len(inputs) > 1 else inputs[0]
    model = keras.Model(structure, L.Dense(1)(L.Concatenate()(flat) if len(flat) > 1 else flat[0]))
    model.compile("sgd", "mse", **options)
    return model


def trained(model, x, size, epochs=1):
    latest = Latest(model)
    count = len(keras.tree.flatten(x)[0])
    with LossTerms(model, [latest]).added():
        model.fit(x, np.zeros((count, 1)), batch_size=size, epochs=epochs, shuffle=False, verbose=0)
    return latest.inputs()


def numbered(count, *shape):
    return np.broadcast_to(np.arange(count).reshape(-1, *[1] * len(shape)), (count, *shape)).astype("float32")


@pytest.mark.parametrize(
    "options", [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}], ids=str
)
def test_the_newest_samples_come_first(options, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 12)
    found = trained(model_of((3,), **options), numbered(20, 3), 5)
    assert [a[0] for a in found[0]] == [15, 16, 17, 18, 19, 10, 11, 12, 13, 14, 5, 6]


def test_batches_may_be_larger_than_what_is_kept(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 8)
    assert [a[0] for a in trained(model_of((3,)), numbered(20, 3), 20)[0]] == list(range(8))


def test_fewer_samples_than_are_kept_are_all_that_is_returned():
    assert trained(model_of((3,)), numbered(10, 3), 5)[0].shape == (10, 3)
    assert trained(model_of((3,)), numbered(3, 3), 3) is None  # too few to say something


def test_inputs_come_in_the_order_of_the_model():
    model = model_of((2,), (3, 1), names=["b", "a"])
    found = trained(model, {"a": -numbered(8, 3, 1), "b": numbered(8, 2)}, 8)
    by_name = dict(zip([i.name for i in model.inputs], found, strict=True))
    assert by_name["a"].shape == (8, 3, 1)
    assert by_name["b"].max() == -by_name["a"].min() == 7


def test_where_the_inputs_are_unknown_nothing_is_kept_and_training_goes_on(monkeypatch):
    i = keras.Input((None, None, 1))
    model = keras.Model(i, L.GlobalAveragePooling2D()(L.Conv2D(1, 3)(i)))
    model.compile("sgd", "mse")
    assert trained(model, np.ones((8, 4, 4, 1)), 8) is None
    monkeypatch.setattr(module, "_BYTES", 64)
    assert trained(model_of((30,)), numbered(8, 30), 8) is None
    monkeypatch.undo()

    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            self.compute_loss(y=y, y_pred=self(x, training=True))
            return super().train_step((x, y))

    i = keras.Input((3,))
    own = Own(i, L.Dense(1)(i))
    own.compile("sgd", "mse")
    assert len(trained(own, numbered(8, 3), 8)[0]) == 8

"""The mean singular value of a network's Jacobian."""

import keras
import numpy as np
import pytest
from tiny_fits import network, samples

from keras_pcp.statistics import trainability
from keras_pcp.statistics.trainability import mean_singular_value

L = keras.layers


def numeric(model, x, step=1e-2):
    """By central differences, one input at a time."""
    columns = []
    for index in np.ndindex(x.shape[1:]):
        up, down = x.copy(), x.copy()
        up[(slice(None), *index)] += step
        down[(slice(None), *index)] -= step
        columns.append((np.asarray(model(up, training=False)) - np.asarray(model(down, training=False))) / (2 * step))
    jacobians = np.stack(columns, axis=-1).reshape(len(x), -1, len(columns))
    return np.linalg.svd(jacobians, compute_uv=False).mean()


def test_it_is_that_of_the_numeric_jacobian():
    i = keras.Input((4, 4, 1))
    x = L.BatchNormalization()(L.Conv2D(3, 3, activation="tanh")(i))
    model = keras.Model(i, L.Dense(2)(L.Flatten()(x)))
    data = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype("float32")
    assert mean_singular_value(model, data) == pytest.approx(numeric(model, data), rel=1e-3)


def test_several_inputs_and_outputs_count_together():
    a, b = keras.Input((2,)), keras.Input((3,))
    model = keras.Model([a, b], [L.Dense(2, use_bias=False)(a), L.Dense(1, use_bias=False)(b)])
    model.set_weights([np.diag([3.0, 1.0]), np.array([[2.0], [0.0], [0.0]])])
    assert mean_singular_value(model, [np.ones((4, 2)), np.ones((4, 3))]) == pytest.approx(2.0)


def test_many_outputs_are_projected_and_scale_with_the_network():
    i = keras.Input((30,))
    layer = L.Dense(40, use_bias=False)
    model = keras.Model(i, layer(i))
    x = np.ones((2, 30), "float32")
    first = mean_singular_value(model, x, directions=5)
    exact = np.linalg.svd(layer.kernel.numpy().T @ np.eye(30), compute_uv=False)
    assert 0 < first < exact.max()
    layer.kernel.assign(3 * layer.kernel.numpy())
    assert mean_singular_value(model, x, directions=5) == pytest.approx(3 * first, rel=1e-5)
    assert mean_singular_value(model, x, directions=40) == pytest.approx(3 * exact.mean(), rel=1e-4)


def test_very_many_outputs_and_small_passes_give_about_the_same(monkeypatch):
    i = keras.Input((30,))
    model = keras.Model(i, L.Dense(200, use_bias=False)(i))
    x = np.ones((3, 30), "float32")
    usual = mean_singular_value(model, x)
    monkeypatch.setattr(trainability, "_AT_ONCE", 5)
    assert mean_singular_value(model, x) == pytest.approx(usual, rel=1e-5)
    monkeypatch.setattr(trainability, "_MANY", 100)
    assert mean_singular_value(model, x) == pytest.approx(usual, rel=0.2)


def test_what_cannot_be_measured_is_nan(monkeypatch):
    i = keras.Input((3,))
    root = keras.Model(i, L.Dense(2)(keras.ops.sqrt(i)))
    assert np.isnan(mean_singular_value(root, np.zeros((2, 3), "float32")))
    monkeypatch.setattr(trainability, "_BYTES", 8)
    assert np.isnan(mean_singular_value(root, np.ones((2, 3), "float32")))


def test_the_model_stays_as_it_was():
    model, (x, _) = network(), samples()
    before = model.get_weights()
    mean_singular_value(model, x[:8])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))

"""Compensation of what pruning takes, by one ridge regression for each reader."""

import keras
import numpy as np
import pytest

from keras_pcp.repair import closed_form
from keras_pcp.repair.closed_form import Compensation, corrected

L = keras.layers


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["conv", "grouped", "dense"])
def test_compensation_is_the_ridge_regression_of_what_is_left(kind, bias):
    """Against the normal equations of the kept rows, solved anew."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3, 3, 6)).astype("float32") + 1
    x[..., 1] = 0.9 * x[..., 0] + 0.1 * x[..., 1]
    layer = {
        "conv": L.Conv2D(5, 3, use_bias=bias),
        "grouped": L.Conv2D(4, 3, groups=2, use_bias=bias),
        "dense": L.Dense(5, use_bias=bias),
    }[kind]
    i = keras.Input((3, 3, 6))
    model = keras.Model(i, layer(i))
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    mask = np.arange(layer.kernel.shape[-2]) != 1
    found = Compensation(model, [0], x, ridge=0.2).values({0: mask[:, None]})
    for i, value in corrected(model, {0: mask[:, None]}, x, ridge=0.2)[0].items():
        assert value == pytest.approx(found[i], abs=1e-5)
    assert set(found) == ({0, 1} if bias else {0})
    groups = 2 if kind == "grouped" else 1
    kernel = layer.kernel.numpy().reshape(-1, layer.kernel.shape[-1]).astype(float)
    kept = np.tile(mask, len(kernel) // len(mask))
    wide = x.reshape(40, 9, groups, -1) if kind != "dense" else x.reshape(360, 1, 1, 6)
    for group in range(groups):
        read = wide[:, :, group].reshape(len(wide), -1).astype(float)
        old = np.split(kernel, groups, axis=1)[group]
        mean = read.mean(axis=0) * bias
        gram = (read - mean).T @ (read - mean)
        gram += 0.2 * np.trace(gram) / len(read) * np.eye(len(gram))
        expected = np.zeros_like(old)
        expected[kept] = old[kept] + np.linalg.solve(gram[kept][:, kept], gram[kept][:, ~kept] @ old[~kept])
        new = np.split(found[0].reshape(kernel.shape), groups, axis=1)[group]
        assert new == pytest.approx(expected, abs=1e-8)
        if bias:
            shift = np.split(found[1] - layer.bias.numpy(), groups)[group]
            assert shift == pytest.approx(mean @ (old - new), abs=1e-5)


@pytest.mark.parametrize("samples", [60, 5, 4])  # more than the five rows that stay, as many, and fewer
def test_errors_of_a_correction_are_those_of_the_outputs(samples):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 6)).astype("float32")
    x[:, 1] = 0.9 * x[:, 0] + 0.1 * x[:, 1]
    i = keras.Input((6,))
    model = keras.Model(i, L.Dense(5, use_bias=False, name="reader")(i))
    mask = (np.arange(6) != 1)[:, None]
    values, errors = corrected(model, {0: mask}, x, ridge=1e-3)
    kernel, new = model.layers[-1].kernel.numpy().astype(float), values[0]
    whole = np.square(x @ kernel).sum()
    expected = [
        np.square(x @ (kernel * mask) - x @ kernel).sum() / whole,
        np.square(x @ new - x @ kernel).sum() / whole,
    ]
    assert errors[0] == pytest.approx(expected, rel=1e-5)
    assert expected[1] < 0.05 * expected[0]
    exact = Compensation(model, [0], x, ridge=1e-3).values({0: mask})[0]
    assert new == pytest.approx(exact, abs=1e-6)


def test_layers_that_read_infinite_values_or_too_many_are_left_alone(monkeypatch):
    i = keras.Input((6,))
    model = keras.Model(i, L.Dense(5)(i))
    mask, x = {0: (np.arange(6) != 1)[:, None]}, np.ones((8, 6), "float32")
    assert set(corrected(model, mask, x)[0]) == {0, 1}
    x[3, 2] = np.inf
    assert corrected(model, mask, x) == ({}, {})
    monkeypatch.setattr(closed_form, "_MOST_ROWS", 5)
    assert corrected(model, mask, np.ones((8, 6), "float32")) == ({}, {})

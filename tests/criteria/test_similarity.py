"""The order in which filters go that are parallel to others."""

import keras
import numpy as np
import pytest

import keras_pcp
from keras_pcp.surgery.masks import masked

L = keras.layers


def model_of(*kernels):
    """Dense layers side by side whose outputs are added, so that each channel has a filter in each."""
    i = keras.Input((len(kernels[0]),))
    layers = [L.Dense(k.shape[1], use_bias=False, name=f"d{n}") for n, k in enumerate(kernels)]
    made = [layer(i) for layer in layers]
    model = keras.Model(i, L.Dense(1)(L.Add()(made) if len(made) > 1 else made[0]))
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.set_weights([kernel])
    return model


def scores(model):
    return keras_pcp.score_channels(model, keras_pcp.build_graph(model), "orthogonality")["d0"]


def test_the_shorter_of_the_most_parallel_two_goes_first():
    kernel = np.array([[1.0, 2.0, 0.0, 1.0], [0.0, 0.2, 3.0, -1.0]])
    a, b, c, d = kernel.T
    cosine = lambda u, v: abs(u @ v) / np.linalg.norm(u) / np.linalg.norm(v)  # noqa: E731
    # a and b are the most parallel, and a is shorter. Then d and c (0.707) or d and b (0.63): d is shorter. Then b and c.
    expected = [1 - cosine(a, b), 1.0, 1.0, 1 - cosine(c, d)]
    expected[1] = 1 - cosine(b, c)
    assert scores(model_of(kernel)) == pytest.approx(expected, abs=1e-6)


def test_whatever_is_kept_is_less_parallel_than_any_pair_that_was_broken_up():
    kernel = np.random.default_rng(0).normal(size=(6, 10))
    found = scores(model_of(kernel))
    unit = kernel / np.linalg.norm(kernel, axis=0)
    parallel = np.abs(unit.T @ unit) - np.eye(10)
    for cut in np.sort(found)[:-1]:
        kept = found > cut
        assert parallel[np.ix_(kept, kept)].max() <= 1 - cut + 1e-6
    assert len(set(found.round(9))) >= 8


def test_coupled_layers_have_the_same_weight_whatever_their_scale():
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(5, 6)), rng.normal(size=(5, 6))
    assert scores(model_of(one, 100 * two)) == pytest.approx(scores(model_of(one, two)), abs=1e-5)
    assert scores(model_of(one, two)) != pytest.approx(scores(model_of(one)), abs=1e-2)


def test_filters_of_zeros_and_removed_channels_get_zero_and_do_not_count():
    kernel = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.1, 0.0, 2.0]])
    model = model_of(kernel)
    assert scores(model)[2] == 0
    graph = keras_pcp.build_graph(model)
    selection = keras_pcp.Selection({"d0": np.array([True, False, True, True])})
    with masked(model, graph, selection):
        found = keras_pcp.score_channels(model, graph, "orthogonality")["d0"]
    assert found.tolist() == [1.0, 0.0, 0.0, 1.0]  # 0 and 3 are orthogonal


def test_reciprocal_filters_are_the_common_part_of_all_lists_of_nearest_filters():
    kernel = np.random.default_rng(2).normal(size=(3, 9))
    model = model_of(kernel)
    found = keras_pcp.score_channels(model, keras_pcp.build_graph(model), "reciprocal")["d0"]
    distances = np.array([[np.linalg.norm(a - b) for b in kernel.T] for a in kernel.T])
    for k in range(1, 10):
        common = set(range(9))
        for row in distances:
            common &= set(np.argsort(row)[:k].tolist())
        assert set(np.flatnonzero(found > 1 - k / 9 + 1e-9)) == common

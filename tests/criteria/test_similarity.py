"""The order in which filters go that are parallel to others."""

import keras
import numpy as np
import pytest

import keras_pcp
from keras_pcp.criteria import similarity
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


def test_each_score_is_the_distance_from_the_span_of_what_is_left():
    """Against least squares, one filter after the other."""
    kernel = np.random.default_rng(0).normal(size=(12, 7)) * np.arange(1, 8)
    found = scores(model_of(kernel))
    kernel, left = kernel / np.linalg.norm(kernel), list(range(7))
    while len(left) > 1:
        distances = {}
        for c in left:
            others = kernel[:, [d for d in left if d != c]]
            fitted, *_ = np.linalg.lstsq(others, kernel[:, c], rcond=None)
            distances[c] = np.linalg.norm(kernel[:, c] - others @ fitted)
        gone = min(distances, key=distances.get)
        assert found[gone] == pytest.approx(distances[gone], rel=0.05)  # there is a small penalty
        assert found[gone] == found[left].min()
        left.remove(gone)


@pytest.mark.parametrize("left", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("removed", [0, 3])
def test_blocks_change_neither_the_order_nor_the_scores(monkeypatch, left, removed):
    """Against a new inverse for every filter that goes, with blocks of 8 filters."""
    monkeypatch.setattr(similarity, "_BLOCK", 8)
    rng = np.random.default_rng(left)
    kernel, keep = rng.normal(size=(12, left + removed)), rng.permutation(left + removed) >= removed
    model = model_of(kernel)
    graph = keras_pcp.build_graph(model)
    with masked(model, graph, keras_pcp.Selection({"d0": keep})):
        found = keras_pcp.score_channels(model, graph, "orthogonality")["d0"]
    matrix = kernel.astype("float32").astype(float).T
    matrix = matrix[keep] / np.linalg.norm(matrix)
    penalty, here, expected = 1e-3 * np.square(matrix).sum() / left, np.arange(left), np.zeros(left)
    while len(here):
        inverse = np.linalg.inv(matrix[here] @ matrix[here].T + penalty * np.eye(len(here)))
        gone = np.argmax(np.diag(inverse))
        expected[here[gone]] = 1 / np.sqrt(inverse[gone, gone])
        here = np.delete(here, gone)
    assert found[keep] == pytest.approx(expected, rel=1e-9)
    assert np.argsort(found[keep]).tolist() == np.argsort(expected).tolist()
    assert not found[~keep].any()


def test_of_two_equal_filters_one_stays_and_more_filters_than_numbers_still_have_an_order():
    kernel = np.random.default_rng(1).normal(size=(6, 5))
    kernel[:, 3] = kernel[:, 1]
    found = np.sort(scores(model_of(kernel))[[1, 3]])
    assert found[0] < 0.05 < 0.2 < found[1]
    wide = np.random.default_rng(1).normal(size=(3, 9))
    found = scores(model_of(wide))
    assert len(set(found.round(9))) == 9
    kept = wide[:, np.argsort(found)[-3:]]
    assert np.linalg.cond(kept) < 20


def test_coupled_layers_have_the_same_weight_whatever_their_scale():
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(5, 6)), rng.normal(size=(5, 6))
    assert scores(model_of(one, 100 * two)) == pytest.approx(scores(model_of(one, two)), abs=1e-5)
    assert scores(model_of(one, two)) != pytest.approx(scores(model_of(one)), abs=1e-2)


def test_filters_of_zeros_go_first_and_removed_channels_do_not_count():
    kernel = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.1, 0.0, 2.0]])
    model = model_of(kernel)
    assert scores(model).argmin() == 2
    graph = keras_pcp.build_graph(model)
    selection = keras_pcp.Selection({"d0": np.array([True, False, True, True])})
    with masked(model, graph, selection):
        found = keras_pcp.score_channels(model, graph, "orthogonality")["d0"]
    assert found[1] == 0
    assert found == pytest.approx(np.array([1.0, 0.0, 0.0, 2.0]) / np.linalg.norm(kernel), abs=0.03)  # orthogonal


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

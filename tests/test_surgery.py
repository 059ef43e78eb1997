"""Copies: what a pruned copy has beside the sliced weights."""

import keras
import numpy as np
import pytest
from zoo import outputs_of, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError

L = keras.layers


def adapted_model():
    rng = np.random.default_rng(0)
    normalization = L.Normalization()
    normalization.adapt(rng.normal(3, 2, (50, 6, 6, 3)))
    i = keras.Input((6, 6, 3))
    x = L.Conv2D(8, 3, activation="relu")(normalization(i))
    return keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


def test_a_copy_of_an_adapted_normalization_normalizes_alike():
    model, x = adapted_model(), np.random.default_rng(1).normal(3, 2, (2, 6, 6, 3))
    graph = keras_pcp.build_graph(model)
    same = keras_pcp.prune_model(model, graph, keras_pcp.Selection())
    assert np.array_equal(outputs_of(same, x)[0], outputs_of(model, x)[0])
    selection = random_selection(graph, 0)
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, x)[0]
    found = outputs_of(keras_pcp.prune_model(model, graph, selection), x)[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_no_initializer_runs_for_a_pruned_copy(monkeypatch):
    model = adapted_model()
    graph = keras_pcp.build_graph(model)

    def never(*args, **kwargs):
        raise AssertionError("initialized in vain")

    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", never)
    with pytest.raises(AssertionError, match="in vain"):
        keras.models.clone_model(model)
    small = keras_pcp.prune_model(model, graph, random_selection(graph, 0))
    assert small.count_params() < model.count_params()


def test_a_graph_of_another_model_is_refused_before_anything_is_built():
    graph = keras_pcp.build_graph(adapted_model())
    i = keras.Input((6, 6, 3))
    other = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(9, 3)(i))))
    with pytest.raises(InvalidArgumentError, match="call build_graph"):
        keras_pcp.prune_model(other, graph, keras_pcp.Selection())

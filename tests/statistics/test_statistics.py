"""What criteria read: gradients and features, against finite differences and the layers themselves."""

import keras
import numpy as np
import pytest
from by_hand import chain, features_model
from slopes import kernel_index, problem, slow_gates, slow_gradients, small
from zoo import build, inputs_for

import keras_pcp
from keras_pcp.statistics import Statistics
from keras_pcp.statistics.statistics import SAMPLES

L = keras.layers


@pytest.mark.parametrize(
    "name",
    [
        "residual",
        "concat",
        "depthwise",
        "plain_flatten",
        "shared_layers",
        "two_in_two_out",
        "nested",
        "attention_exact",
        "grouped",
        "conv_1d",
    ],
)
def test_gate_gradients_are_the_slopes_of_the_loss_when_what_reads_a_channel_is_scaled(name, doubles):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    data, losses = problem(model, samples=3)
    found = Statistics(model, graph, data).gate_gradients
    for group in list(graph)[:3]:
        slow = slow_gates(model, group, losses)
        np.testing.assert_allclose(found[group.name], slow, rtol=1e-3, atol=1e-5 * np.abs(slow).max() + 1e-9)


def test_gradients_are_slopes_of_the_mean_loss_without_penalties(doubles):
    model = small()
    data, losses = problem(model)
    statistics = Statistics(model, keras_pcp.build_graph(model), data)
    for index in (kernel_index(model, "stem"), kernel_index(model, "outer")):
        slow = slow_gradients(model, index, losses)
        np.testing.assert_allclose(statistics.gradients[index], slow.mean(axis=0), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(statistics.squared_gradients[index], np.square(slow).mean(axis=0), rtol=1e-4)


def test_gate_gradients_tell_how_outputs_of_one_sample_compare():
    model = build("two_in_two_out")
    data, _ = problem(model, samples=4)
    graph = keras_pcp.build_graph(model)
    alone = Statistics(model, graph, (*data, [np.array([1.0, 1, 1, 1]), np.zeros(4)]))
    scaled = Statistics(model, graph, (*data, [np.array([2.0, 3, 0, 5]), np.zeros(4)]))
    assert scaled.sample_weights.tolist() == [2, 3, 0, 5]
    for name, gates in alone.gate_gradients.items():
        np.testing.assert_allclose(scaled.gate_gradients[name][[0, 1, 3]], gates[[0, 1, 3]], rtol=1e-5, atol=1e-9)
        assert not scaled.gate_gradients[name][2].any()


def test_gradients_are_weighted_like_the_loss_and_none_where_the_loss_does_not_reach():
    i = keras.Input((3,))
    used, unused = L.Dense(4, name="used"), L.Dense(2)
    unused(i)
    model = keras.Model(i, L.Dense(1)(used(i)))
    both = keras.Model(i, [model.output, unused(i)])
    both.compile("sgd", ["mse", None])
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(70, 3)), rng.normal(size=(70, 1)), rng.uniform(0, 2, 70)
    model.compile("sgd", "mse")
    found = Statistics(model, keras_pcp.build_graph(model), (x, y, weight)).gradients
    repeated = Statistics(model, keras_pcp.build_graph(model), (x, y)).gradients
    error = weight[:, None] * (model(x).numpy() - y)
    np.testing.assert_allclose(found[3], 2 * error.mean(axis=0), rtol=1e-4)
    assert not np.allclose(found[3], repeated[3])
    graph = keras_pcp.build_graph(both)
    partial = Statistics(both, graph, (x, [y, y])).gradients
    missing = {w.path.split("/")[0] for w, g in zip(both.weights, partial, strict=True) if g is None}
    assert missing == {unused.name}
    assert np.isfinite(keras_pcp.score_channels(both, graph, "taylor", data=(x, [y, y]))["used"]).all()


def test_features_are_taken_behind_the_activation_and_before_pooling():
    model, graph, data, maps = features_model()
    found = Statistics(model, graph, data).features
    assert maps.keys() == graph.groups.keys()
    for name in maps:
        np.testing.assert_allclose(found[name], maps[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("nested", 0),
        ("two_in_two_out", 0),
        ("conv_1d", 0),
        ("repetition", 0),
        ("stacked", 0),
        ("mixer", 0),
        ("zero_padded_shortcuts", 4),  # 3 of the 11 channels of a sum
    ],
)
def test_features_of_a_model_are_those_that_pruning_takes_away(name, number):
    """Zeroing all that makes a channel zeroes its features and those of no other channel of the group."""
    model = build(name)
    graph = keras_pcp.build_graph(model)
    data = inputs_for(model, 4), np.zeros(4)
    group = list(graph)[number]
    whole = Statistics(model, graph, data).features[group.name]
    c = int(np.argmax(np.abs(whole).reshape(-1, group.num_channels).max(axis=0)))
    for s in group.slices:
        if s.role != "consume":
            value = model.weights[s.weight].numpy()
            np.moveaxis(value, s.axis, 0)[s.positions[s.channels == c]] = 0
            model.weights[s.weight].assign(value)
    changed = Statistics(model, graph, data).features[group.name]
    others = np.arange(group.num_channels) != c
    assert not np.allclose(changed[..., c], whole[..., c])
    np.testing.assert_allclose(changed[..., others], whole[..., others], rtol=1e-5, atol=1e-6)


def test_features_are_taken_behind_the_sum_even_if_a_group_is_alone_before():
    i = keras.Input((3,))
    joined = L.Concatenate()([L.Dense(2, name="a")(i), L.Dense(4, name="b")(i)])
    whole = L.Add()([joined, L.Dense(6, name="whole")(i)])
    model = keras.Model(i, L.Dense(1)(whole))
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    found = Statistics(model, keras_pcp.build_graph(model), (x, np.zeros(5))).features
    np.testing.assert_allclose(
        np.concatenate([found["a"], found["b"]], axis=-1), keras.Model(i, whole)(x), rtol=1e-5, atol=1e-6
    )


def test_features_find_the_inputs_of_a_model_by_name():
    a, b = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    model = keras.Model([a, b], L.Dense(1)(L.Dense(4, name="hidden")(L.Subtract()([a, b]))))
    graph = keras_pcp.build_graph(model)
    x = {"a": np.ones((2, 3)), "b": np.full((2, 3), 3.0)}
    found = Statistics(model, graph, (x, np.zeros((2, 1)))).features["hidden"]
    np.testing.assert_allclose(found, np.full((2, 3), 2.0) @ model.get_layer("hidden").kernel.numpy(), rtol=1e-5)


def test_no_more_samples_are_used_than_documented():
    model = chain()
    model.compile("sgd", "mse")
    data = np.zeros((SAMPLES + 50, 4, 4, 2)), np.zeros((SAMPLES + 50, 3))
    statistics = Statistics(model, keras_pcp.build_graph(model), data)
    assert len(statistics.features["conv"]) == len(statistics.samples[1]) == SAMPLES

"""What channels add to their readers, against slow loops."""

import itertools

import keras
import numpy as np
import pytest
from by_hand import all_positions
from zoo import build, inputs_for

import keras_pcp
from keras_pcp.graph.selection import Selection
from keras_pcp.statistics import Statistics

L = keras.layers


def linear_copy(model):
    """A copy without activations inside of layers, so that outputs of layers are sums over channels."""
    copy = keras_pcp.prune_model(model, keras_pcp.build_graph(model), Selection())
    for layer in copy.layers:
        if hasattr(layer, "activation") and not isinstance(layer, L.Activation):
            layer.activation = keras.activations.linear
    return copy


def slow_products(model, graph, x):
    """Outputs of every layer that reads a group, with all and without each channel, by plain calls of the layers."""
    tensors = {}
    for layer in model.layers:
        if layer.weights and len(layer._inbound_nodes) == 1:
            tensors[layer.name] = layer
    found = {}
    for group in graph:
        total = np.zeros((group.num_channels,) * 2)
        for name in {s.layer for s in group.slices_of("consume")}:
            layer = tensors[name]
            given = keras.Model(model.inputs, layer.input)(x, training=False)
            whole = np.asarray(layer(given), float)
            parts = []
            for c in range(group.num_channels):
                saved = [w.numpy() for w in layer.weights]
                for s in group.slices_of("consume"):
                    if s.layer == name:
                        weight = model.weights[s.weight]
                        value = weight.numpy()
                        np.moveaxis(value, s.axis, 0)[s.positions[s.channels == c]] = 0
                        weight.assign(value)
                parts.append((whole - np.asarray(layer(given), float)).ravel())
                for w, value in zip(layer.weights, saved, strict=True):
                    w.assign(value)
            positions = whole[0].size // whole.shape[-1]
            total += np.array(parts) @ np.array(parts).T / len(whole) / positions
        found[group.name] = total
    return found


@pytest.mark.parametrize(
    "name",
    [
        "plain_flatten",
        "residual",
        "concat",
        "depthwise",
        "grouped",
        "transposed",
        "conv_1d",
        "conv_3d",
        "einsum_dense",
        "repetition",
        "mixer",
        "two_in_two_out",
    ],
)
def test_contributions_are_what_layers_lose_without_a_channel(name, monkeypatch):
    all_positions(monkeypatch)
    model = linear_copy(build(name))
    graph = keras_pcp.build_graph(model)
    x = inputs_for(model, 5)
    found = Statistics(model, graph, (x, np.zeros(5))).contributions
    for group, slow in slow_products(model, graph, x).items():
        np.testing.assert_allclose(found[group], slow, rtol=1e-3, atol=1e-4 * np.abs(slow).max() + 1e-9)


def test_every_call_of_a_shared_layer_contributes(monkeypatch):
    all_positions(monkeypatch)
    a, b = keras.Input((3,)), keras.Input((3,))
    first, second = L.Dense(4, name="first"), L.Dense(2, name="second")
    model = keras.Model([a, b], L.Subtract()([second(first(a)), second(first(b))]))
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(6, 3)).astype("float32") for _ in range(2)]
    found = Statistics(model, keras_pcp.build_graph(model), (x, np.zeros(6))).contributions["first"]
    kernel = second.kernel.numpy()
    slow = np.zeros((4, 4))
    for hidden in (np.asarray(first(v)) for v in x):
        for row in hidden:
            for c, d in itertools.product(range(4), repeat=2):
                slow[c, d] += sum(row[c] * kernel[c, o] * row[d] * kernel[d, o] for o in range(2)) / 6
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-6)

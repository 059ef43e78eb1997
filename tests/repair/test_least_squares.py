"""The refit of readers, against the least-squares solution on explicit patches."""

import keras
import numpy as np
import pytest
from by_hand import all_positions, one_group
from small_fits import compiled, data
from zoo import build, inputs_for, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.trace import trace
from keras_pcp.repair import least_squares
from keras_pcp.repair.least_squares import inputs_at_once

L = keras.layers


def duplicated(units=6):
    """Channels c and c + units / 2 of both hidden layers are multiples of each other, and batch norm. keeps it so."""
    rng = np.random.default_rng(0)
    i = keras.Input((9, 9, 2))
    x = L.Conv2D(units, 3, padding="same", name="first")(i)
    x = L.ReLU()(L.BatchNormalization(name="bn")(x))
    x = L.Conv2D(units, 3, strides=2, padding="same", use_bias=False, name="second")(x)
    model = keras.Model(i, L.Dense(4, name="head", activation="softmax")(L.Flatten()(L.ReLU()(x))))
    for w in model.weights:
        w.assign(rng.uniform(0.5, 1.5, w.shape) if "bn" in w.path else rng.normal(0, 0.3, w.shape))
    half = units // 2
    for w in model.weights:
        value = w.numpy()
        if w.path.startswith(("first", "second")):
            value[..., half:] = value[..., :half] * (1 if "first" in w.path else 2)
        elif "bn" in w.path:
            value[half:] = value[:half]
        w.assign(value)
    graph = keras_pcp.build_graph(model)
    x = rng.normal(size=(64, 9, 9, 2)).astype("float32")
    return (
        model,
        graph,
        (x, np.zeros(64)),
        Selection({"first": np.arange(units) < half, "second": np.arange(units) >= half}),
    )


def test_what_copies_of_channels_did_is_done_by_those_that_stay():
    model, graph, data, selection = duplicated()
    pruned = keras_pcp.prune_model(model, graph, selection)
    expected, before = model(data[0]).numpy(), pruned(data[0]).numpy()
    found = keras_pcp.refit(model, pruned, graph, selection, data, ridge=1e-9)
    assert np.abs(before - expected).max() > 0.1
    np.testing.assert_allclose(pruned(data[0]).numpy(), expected, atol=1e-4)
    assert list(found.errors) == ["second", "head"]
    assert all(after < 1e-7 < before for before, after in found.errors.values())
    assert found.left == {}
    again = keras_pcp.prune_model(model, graph, selection)
    keras_pcp.refit(model, again, graph, selection, data[0], ridge=1e-9)  # labels are not needed
    assert all(np.array_equal(a, b) for a, b in zip(again.get_weights(), pruned.get_weights(), strict=True))


def test_nothing_else_changes():
    model, graph, data, selection = duplicated()
    pruned = keras_pcp.prune_model(model, graph, Selection({"first": selection.keep["first"]}))
    states = [{v.path: v.numpy() for v in m.variables} for m in (model, pruned)]
    keras_pcp.refit(model, pruned, graph, Selection({"first": selection.keep["first"]}), data)
    for m, state in zip((model, pruned), states, strict=True):
        changed = {v.path for v in m.variables if not np.array_equal(v.numpy(), state[v.path])}
        assert changed == (set() if m is model else {"second/kernel"})
    whole = keras_pcp.refit(model, pruned, graph, Selection(), data)
    assert (whole.errors, whole.left) == ({}, {})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("options", "zeros"),
    [
        ({"dilation_rate": 2}, ((0, 0), (0, 0))),
        ({"dilation_rate": 2, "padding": "same"}, ((2, 2), (2, 2))),
        ({"strides": 2, "padding": "same"}, ((0, 1), (1, 1))),
        ({"strides": 2, "padding": "same", "groups": 2}, ((0, 1), (1, 1))),
    ],
)
def test_the_refit_is_the_least_squares_solution_on_explicit_patches(bias, options, zeros, monkeypatch):
    all_positions(monkeypatch)
    monkeypatch.setattr(least_squares, "_BATCH", 7)  # of 30 samples
    rng = np.random.default_rng(0)
    i = keras.Input((8, 7, 16))
    layer = L.Conv2D(6, 3, use_bias=bias, name="second", activation="relu", **options)
    model = keras.Model(i, layer(L.Conv2D(12, 1, name="first")(i)))
    for w in model.weights:
        w.assign(rng.normal(size=w.shape))
    graph = keras_pcp.build_graph(model)
    selection = Selection({"first": np.arange(graph["first"].num_channels) != 1})
    pruned = keras_pcp.prune_model(model, graph, selection)
    samples = rng.normal(size=(30, 8, 7, 16)).astype("float32")
    layer = pruned.get_layer("second")
    before = [w.numpy() for w in layer.weights]
    errors = keras_pcp.refit(model, pruned, graph, selection, (samples, np.zeros(30)), ridge=1e-12).errors
    layers = [m.get_layer("second") for m in (model, pruned)]
    given = [m.get_layer("first")(samples).numpy() for m in (model, pruned)]
    layers[0].activation = keras.activations.linear
    layers[1].activation = keras.activations.linear
    target, padded = layers[0](given[0]).numpy(), np.pad(given[1], [(0, 0), *zeros, (0, 0)])
    after = [w.numpy() for w in layer.weights]
    for weights, share in zip((before, after), errors["second"], strict=True):
        layer.set_weights(weights)
        rest = target - layer(given[1]).numpy()
        assert share == pytest.approx(np.square(rest).sum() / np.square(target).sum(), rel=1e-3)
    groups, step, far = layers[1].groups, layers[1].strides[0], layers[1].dilation_rate[0]
    width, made = given[1].shape[-1] // groups, 6 // groups
    for g in range(groups):
        rows = []
        for n, a, b in np.ndindex(target.shape[:-1]):
            taps = [padded[n, a * step + p * far, b * step + q * far] for p in range(3) for q in range(3)]
            rows.append([*np.concatenate([tap[g * width : (g + 1) * width] for tap in taps]), *[1.0] * bias])
        wanted = target[..., g * made : (g + 1) * made].reshape(len(rows), -1)
        slow = np.linalg.lstsq(np.array(rows), wanted, rcond=None)[0]
        kernel = layers[1].kernel.numpy()[..., g * made : (g + 1) * made]
        np.testing.assert_allclose(kernel.reshape(9 * width, made), slow[: 9 * width], rtol=1e-3, atol=1e-3)
        if bias:
            np.testing.assert_allclose(
                layers[1].bias.numpy()[g * made : (g + 1) * made], slow[-1], rtol=1e-3, atol=1e-3
            )


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
        "shared_layers",
        "nested",
        "attention_exact",
        "mixer",
    ],
)
def test_no_error_rises_and_what_is_not_refit_is_told(name):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    selection = random_selection(graph, 1)
    pruned = keras_pcp.prune_model(model, graph, selection)
    before = [w.numpy() for w in pruned.weights]
    found = keras_pcp.refit(model, pruned, graph, selection, (inputs_for(model, 20), np.zeros(20)))
    assert all(new <= old for old, new in found.errors.values())
    readers = {s.layer for n in selection.removed() for s in graph[n].slices_of("consume")}
    assert {*found.errors, *found.left} == readers
    assert not set(found.errors) & set(found.left)
    refit = {n for n, (old, new) in found.errors.items() if new < old}
    for w, value in zip(pruned.weights, before, strict=True):
        if not np.array_equal(w.numpy(), value):
            assert any(n in w.path for n in refit)
            assert w.path.endswith(("kernel", "bias"))


def test_weights_stay_where_samples_cannot_tell_better_ones():
    model, graph, data, _ = one_group(5)
    selection = Selection({"hidden": np.arange(5) != 2})
    pruned = keras_pcp.prune_model(model, graph, selection)
    hidden = model.get_layer("hidden")
    for m in (model, pruned):
        m.get_layer("hidden").kernel.assign(np.zeros(m.get_layer("hidden").kernel.shape))
        m.get_layer("hidden").bias.assign(-np.ones(m.get_layer("hidden").bias.shape))
    assert hidden.units == 5
    before = pruned.get_weights()
    found = keras_pcp.refit(model, pruned, graph, selection, data)
    assert all(old == new for old, new in found.errors.values())
    assert all(np.array_equal(a, b) for a, b in zip(before, pruned.get_weights(), strict=True))


def test_a_masked_copy_is_refit_to_the_weights_of_the_pruned_model():
    model, graph, data, selection = duplicated()
    only = Selection({"first": selection.keep["first"]})
    pruned = keras_pcp.prune_model(model, graph, only)
    keras_pcp.refit(model, pruned, graph, only, data)
    copy = keras_pcp.prune_model(model, graph, Selection())
    before = copy.get_weights()
    with keras_pcp.masked(copy, graph, only):
        keras_pcp.refit(model, copy, graph, only, data)
        kernel = copy.get_layer("second").kernel.numpy()
        np.testing.assert_allclose(kernel[:, :, :3], pruned.get_layer("second").kernel.numpy(), rtol=1e-3, atol=1e-4)
        assert not kernel[:, :, 3:].any()
    assert all(np.array_equal(a, b) for a, b in zip(before, copy.get_weights(), strict=True))


def test_goals_for_any_selection_serve_several_refits():
    model, graph, data, _ = duplicated()
    goals = least_squares.goals_of(model, graph, data[0], 0)
    for kept in (np.arange(6) < 5, np.arange(6) > 2, np.arange(6) > 0):
        selection = Selection({"first": kept})
        one, other = (keras_pcp.prune_model(model, graph, selection) for _ in range(2))
        found = least_squares.refit_to(goals, one, selection)
        assert found == keras_pcp.refit(model, other, graph, selection, data)
        assert list(found.errors) == ["second"]
        assert all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def test_nothing_is_written_if_a_later_layer_fails(monkeypatch):
    model, graph, data, selection = duplicated()
    pruned = keras_pcp.prune_model(model, graph, selection)
    before = pruned.get_weights()
    solve, calls = np.linalg.solve, []

    def failing(*args):
        calls.append(args)
        if len(calls) > 1:
            raise np.linalg.LinAlgError("singular")
        return solve(*args)

    monkeypatch.setattr(np.linalg, "solve", failing)
    with pytest.raises(InvalidArgumentError, match=r"ridge=0\.1 is too small"):
        keras_pcp.refit(model, pruned, graph, selection, data)
    assert all(np.array_equal(a, b) for a, b in zip(before, pruned.get_weights(), strict=True))


def test_models_that_do_not_belong_together_are_refused():
    model, graph, data, selection = duplicated()
    pruned = keras_pcp.prune_model(model, graph, selection)
    with pytest.raises(InvalidArgumentError, match="share no layers with model"):
        keras_pcp.refit(model, model, graph, selection, data)
    x = h = keras.Input(model.input_shape[1:])
    for _ in trace(model).calls[1:]:  # as many calls, but none of a layer that can be refit
        h = keras.layers.Activation("linear")(h)
    with pytest.raises(InvalidArgumentError, match="share no layers with model"):
        keras_pcp.refit(model, keras.Model(x, h), graph, selection, data)
    other = Selection({"first": np.arange(6) < 5})
    with pytest.raises(InvalidArgumentError, match="selection keeps 5 of 6 inputs"):
        keras_pcp.refit(model, pruned, graph, other, data)
    with pytest.raises(InvalidArgumentError, match=r"ridge must be a number in \(0, inf\), got 0"):
        keras_pcp.refit(model, pruned, graph, selection, data, ridge=0)


def test_a_refit_takes_fewer_samples_where_tensors_are_large(monkeypatch):
    monkeypatch.setattr("keras_pcp.repair.least_squares._BYTES_AT_ONCE", 4 * 8 * 8 * 16 * 20)
    model = compiled()
    largest = max(np.prod(t.shape[1:]) for t in trace(model).tensors)
    few = 8 * 8 * 16 * 20 // largest
    assert len(inputs_at_once(model, data(600, 2), 512, 0)) == few < 512
    graph = keras_pcp.build_graph(model)
    masks = {g.name: np.arange(g.num_channels) > 0 for g in graph}
    pruned = keras_pcp.prune_model(model, graph, keras_pcp.Selection(masks))
    lengths = set()
    draw = keras_pcp.repair.least_squares.draw
    monkeypatch.setattr(
        "keras_pcp.repair.least_squares.draw", lambda rng, n, *rest: (lengths.add(n), draw(rng, n, *rest))[1]
    )
    keras_pcp.refit(model, pruned, graph, keras_pcp.Selection(masks), data(600, 2))
    assert lengths == {few}

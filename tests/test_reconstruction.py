"""Refitted: what channels add to their readers, LASSO, ThiNet and the refit, against slow loops and scikit-learn."""

import itertools

import keras
import numpy as np
import pytest
from sklearn.linear_model import Lasso, lars_path
from zoo import build, inputs_for, random_selection

import keras_pcp
from keras_pcp.criteria.lasso import entry_points
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.selection import Selection
from keras_pcp.repair import least_squares as least_squares
from keras_pcp.repair.closed_form import Compensation
from keras_pcp.statistics import Statistics, contributions
from keras_pcp.statistics import layer_inputs as patches_module
from keras_pcp.statistics.layer_inputs import draw, kernel_array, kernel_matrix, patches, window_of

L = keras.layers

CONVOLUTIONS = {
    "1d": (L.Conv1D(4, 3, strides=2), (3, 9, 2)),
    "1d_same": (L.Conv1D(4, 4, strides=3, padding="same"), (3, 10, 2)),
    "1d_causal": (L.Conv1D(4, 3, dilation_rate=2, padding="causal"), (2, 7, 2)),
    "2d": (L.Conv2D(5, (3, 2)), (2, 6, 5, 3)),
    "2d_same_strided": (L.Conv2D(5, (3, 2), strides=2, padding="same"), (2, 7, 6, 3)),
    "2d_dilated": (L.Conv2D(5, 3, dilation_rate=(2, 1), padding="same"), (2, 6, 6, 3)),
    "2d_far_strides": (L.Conv2D(5, 1, strides=3, padding="same"), (2, 8, 7, 3)),
    "2d_grouped": (L.Conv2D(6, 3, groups=2, padding="same"), (2, 5, 5, 4)),
    "3d": (L.Conv3D(3, 2, strides=(1, 2, 1), padding="same"), (2, 4, 5, 3, 2)),
    "dense": (L.Dense(4), (5, 3)),
    "dense_in_space": (L.Dense(4), (2, 5, 6, 3)),
}


def all_positions(monkeypatch):
    """Looks at every output position instead of a few."""
    for module in (contributions, patches_module, least_squares):
        monkeypatch.setattr(module, "POSITIONS", 10**6)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("count", [4, 1000])
def test_what_is_read_times_the_kernel_is_the_output_of_the_layer(name, count):
    layer, shape = CONVOLUTIONS[name]
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected = np.asarray(layer(x))
    window = window_of(layer, x.ndim)
    chosen = draw(np.random.default_rng(1), len(x), window.space(shape), count)
    assert window.space(shape) == expected.shape[1:-1]
    found = patches(window, x, chosen) @ kernel_matrix(window, layer.kernel.numpy())
    found = np.moveaxis(found, 0, 1).reshape(*chosen.shape, -1) + layer.bias.numpy()
    flat = expected.reshape(len(x), -1, expected.shape[-1])
    np.testing.assert_allclose(found, flat[np.arange(len(x))[:, None], chosen], rtol=1e-4, atol=1e-5)
    kernel = layer.kernel.numpy()
    assert np.array_equal(kernel_array(kernel_matrix(window, kernel), kernel.shape), kernel)


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


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "attention_exact",
        "nested",
        "shared_layers",
        "unused_branch",
        "single_channel",
        "einsums",
        "channel_shuffle",
        "u_net",
        "slicing",
        "stacked",
        "squeeze_excite",
    ],
)
def test_whatever_reads_a_group_its_channels_are_scored(name):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    data = inputs_for(model, 4), np.zeros(4)
    for criterion in ("lasso", "thinet"):
        scores = keras_pcp.score_channels(model, graph, criterion, data=data)
        assert all(s.max() > 0 for s in scores.values()) or name == "unused_branch"


def regression(seed):
    """Correlated regressors and something to explain, often with regressors that leave again."""
    rng = np.random.default_rng(seed)
    points, channels = int(rng.integers(20, 60)), int(rng.integers(2, 13))
    x = rng.normal(size=(points, channels)) @ rng.normal(size=(channels, channels))
    return x, x.sum(axis=1) + rng.normal(size=points) * (seed % 3)


@pytest.mark.parametrize("seed", range(20))
def test_the_path_of_lasso_is_that_of_scikit_learn(seed):
    x, y = regression(seed)
    lambdas, _, betas = lars_path(x, y, method="lasso")
    # A coefficient that is not 0 at the end of a piece of the path is not 0 from its beginning on.
    slow = [max((a for a, b in zip(lambdas, row[1:], strict=False) if b != 0), default=0) for row in betas]
    np.testing.assert_allclose(entry_points(x.T @ x, x.T @ y), len(y) * np.array(slow), rtol=1e-6)


def test_the_best_scores_are_the_channels_that_lasso_keeps():
    checked = 0
    for seed in range(12):
        x, y = regression(seed)
        entry = np.sort(entry_points(x.T @ x, x.T @ y))[::-1]
        scores = entry_points(x.T @ x, x.T @ y)
        if len(lars_path(x, y, method="lasso")[0]) != len(scores) + 1:
            continue  # one left again: what LASSO keeps is not nested
        for n in range(1, len(scores)):
            between = (entry[n - 1] * entry[n]) ** 0.5
            fit = Lasso(alpha=between / len(y), fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x, y)
            assert np.array_equal(fit.coef_ != 0, scores > between)
            checked += 1
    assert checked > 20


def test_a_combination_of_other_channels_never_comes_in():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    x = np.concatenate([x, x[:, :1], x[:, 1:2] * 0.5 + x[:, 2:3] * 0.5, np.zeros((40, 1))], axis=1)
    scores = entry_points(x.T @ x, x.T @ x.sum(axis=1))
    assert np.isfinite(scores).all()
    assert np.count_nonzero(scores) == 4
    assert scores[6] == 0


def one_group(channels, readers=1, seed=0):
    """Two dense layers, and the contributions worked out by hand."""
    rng = np.random.default_rng(seed)
    i = keras.Input((5,))
    hidden = L.Dense(channels, activation="relu", name="hidden")(i)
    model = keras.Model(i, [L.Dense(3, name=f"out{k}")(hidden) for k in range(readers)])
    for w in model.weights:
        w.assign(rng.normal(size=w.shape))
    x = rng.normal(size=(12, 5)).astype("float32")
    values = np.maximum(x @ model.get_layer("hidden").kernel.numpy() + model.get_layer("hidden").bias.numpy(), 0)
    kernels = [model.get_layer(f"out{k}").kernel.numpy() for k in range(readers)]
    added = np.array([[values[:, c, None] * k[c] for k in kernels] for c in range(channels)]).reshape(channels, -1)
    return model, keras_pcp.build_graph(model), (x, np.zeros(12)), added.astype(float)


@pytest.mark.parametrize("readers", [1, 2])
def test_lasso_scores_follow_the_formula(readers):
    model, graph, data, added = one_group(6, readers)
    found = keras_pcp.score_channels(model, graph, "lasso", data=data)["hidden"]
    y = added.sum(axis=0)
    # (1 / 2 n) ||y - x b||^2 + alpha |b| of scikit-learn, with alpha = lambda ||y||^2 / n
    for share in (0.3, 0.1, 0.03, 0.01):
        fit = Lasso(share * (y @ y) / len(y), fit_intercept=False, tol=1e-10, max_iter=100_000).fit(added.T, y)
        assert set(np.flatnonzero(fit.coef_)) <= set(np.flatnonzero(found > share))
    np.testing.assert_allclose(found.max(), np.abs(added @ y).max() / (y @ y), rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_thinet_removes_what_adds_least_each_time(seed):
    model, graph, data, added = one_group(7, readers=2, seed=seed)
    found = keras_pcp.score_channels(model, graph, "thinet", data=data)["hidden"]
    removed = [int(c) for c in range(7) if not added[c].any()]
    expected = dict.fromkeys(removed, 0.0)  # those add nothing
    while len(removed) < 7:
        error = {c: sum(added[[*removed, c]].sum(axis=0) ** 2) for c in range(7) if c not in removed}
        removed.append(min(error, key=error.get))
        expected[removed[-1]] = len(removed) / 7
    np.testing.assert_allclose(found, [expected[c] for c in range(7)])


def test_channels_that_are_masked_or_dead_come_last():
    model, graph, data, _ = one_group(6)
    hidden = model.get_layer("hidden")
    hidden.bias.assign(np.where(np.arange(6) == 4, -1e3, 1e3))  # channel 4 is never active, the others are always
    with keras_pcp.masked(model, graph, Selection({"hidden": np.arange(6) != 1})):
        for criterion in ("lasso", "thinet"):
            scores = keras_pcp.score_channels(model, graph, criterion, data=data)["hidden"]
            assert np.argsort(scores)[:2].tolist() == [1, 4]
            assert scores[1] < scores[4]


def test_a_group_that_no_kernel_reads_gets_scores():
    i = keras.Input((4,))
    x = L.Dense(3, name="x")(i)
    model = keras.Model(i, [x, L.Dense(4, name="y", kernel_initializer="zeros")(i)])
    both = keras.Model(i, L.Dense(1, kernel_initializer="zeros")(model(i)[1]))
    graph = keras_pcp.build_graph(both)
    for criterion in ("lasso", "thinet"):
        scores = keras_pcp.score_channels(both, graph, criterion, data=(np.ones((2, 4)), np.ones(2)))
        assert scores["y"].tolist() == [0] * 4


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
    other = Selection({"first": np.arange(6) < 5})
    with pytest.raises(InvalidArgumentError, match="selection keeps 5 of 6 inputs"):
        keras_pcp.refit(model, pruned, graph, other, data)
    with pytest.raises(InvalidArgumentError, match=r"ridge must be a number in \(0, inf\), got 0"):
        keras_pcp.refit(model, pruned, graph, selection, data, ridge=0)


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

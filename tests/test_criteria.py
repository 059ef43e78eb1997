"""Criteria, against slow loops, finite differences and numbers worked out by hand."""

import math

import keras
import numpy as np
import pytest
from by_hand import chain, features_model
from slopes import kernel_index, problem, rows_of, slope, slow_gates, slow_gradients, small
from zoo import build, inputs_for

import keras_pcp
from keras_pcp.criteria import BY_NAME, Chip, GroupFisher, TaylorGate
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.selection import Selection
from keras_pcp.statistics import needs_data
from keras_pcp.testing import check_criterion

L = keras.layers
NEED_DATA = sorted(name for name, criterion in BY_NAME.items() if getattr(criterion, "needs_data", False))


@pytest.mark.parametrize("name", [n for n in BY_NAME if n != "random"])
def test_every_criterion_passes_the_public_checks(name):
    check_criterion(name)


def test_the_random_control_passes_all_checks_but_that_of_renumbering():
    check_criterion("random", permutable=False)
    with pytest.raises(AssertionError, match="renumber"):
        check_criterion("random")


@needs_data
def loudest(group, statistics):
    return statistics.features[group.name].reshape(-1, group.num_channels).max(axis=0)


def unmarked(group, statistics):
    return loudest(group, statistics)


def touching(group, statistics):
    weight = statistics.model.weights[0]
    weight.assign(weight * 1.5)
    return np.ones(group.num_channels)


class Restless:
    calls = 0

    def __call__(self, group, statistics):
        self.calls += 1
        return np.full(group.num_channels, self.calls)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda group, statistics: np.arange(group.num_channels), "renumbering the channels"),
        (lambda group, statistics: np.full(group.num_channels, np.nan), "not finite"),
        (lambda group, statistics: np.ones(group.num_channels + 1), "must have the shape"),
        (Restless(), "with the same seed"),
        (touching, "changes weights"),
        (unmarked, "needs_data"),
    ],
)
def test_the_public_checks_tell_what_is_wrong_with_a_criterion(criterion, message):
    with pytest.raises(AssertionError, match=message):
        check_criterion(criterion)


def test_the_public_checks_pass_a_good_criterion_of_the_user():
    check_criterion(loudest)
    check_criterion(lambda group, statistics: np.zeros(group.num_channels), data=False)


@pytest.mark.parametrize("criterion", ["group_fisher", "obd", TaylorGate(1)])
def test_a_sample_of_weight_2_counts_as_two_samples(criterion, doubles):
    model = small()
    (x, y), _ = problem(model, samples=3)
    graph = keras_pcp.build_graph(model)
    twice = x[[0, 1, 1, 2, 2, 2]], y[[0, 1, 1, 2, 2, 2]]
    weighted = keras_pcp.score_channels(model, graph, criterion, data=(x, y, np.array([1.0, 2, 3])))
    repeated = keras_pcp.score_channels(model, graph, criterion, data=twice)
    for name, scores in repeated.items():
        np.testing.assert_allclose(weighted[name] / weighted[name].sum(), scores / scores.sum(), rtol=1e-6)


def test_taylor_scores_are_the_squared_slopes_when_the_filters_of_a_channel_are_scaled(doubles):
    model = small()
    graph = keras_pcp.build_graph(model)
    data, losses = problem(model)
    found = keras_pcp.score_channels(model, graph, "taylor", data=data)
    for group in graph:
        made = group.slices_of("produce", "kernel")
        for c in range(group.num_channels):
            slow = sum(slope(model.weights[s.weight], rows_of(model, s, c), losses).mean() for s in made)
            assert found[group.name][c] == pytest.approx(slow**2, rel=1e-3, abs=1e-12)


def test_gates_and_fisher_scores_follow_their_formulas(doubles):
    model = small()
    graph = keras_pcp.build_graph(model)
    data, losses = problem(model)
    stem = graph["stem"]
    gates = slow_gates(model, stem, losses)
    assert gates.shape == (5, 4)

    def score(criterion):
        return keras_pcp.score_channels(model, graph, criterion, data=data)["stem"]

    fisher = [sum(gates[n, c] ** 2 for n in range(5)) for c in range(4)]
    np.testing.assert_allclose(score("group_fisher"), fisher, rtol=1e-3)
    pairs = [[gates[:2, c].mean(), gates[2:4, c].mean(), gates[4, c]] for c in range(4)]
    np.testing.assert_allclose(score(TaylorGate(2)), [sum(g**2 for g in p) / 3 for p in pairs], rtol=1e-3)
    np.testing.assert_allclose(score("taylor_gate"), np.square(gates.mean(axis=0)), rtol=1e-3)
    whole = keras_pcp.count_cost(graph).macs
    freed = [whole - keras_pcp.count_cost(graph, Selection({"stem": np.arange(4) != c})).macs for c in range(4)]
    np.testing.assert_allclose(score("group_fisher_macs"), np.divide(fisher, freed), rtol=1e-3)
    # Two layers make the channel, each with an output of 4 x 4 positions.
    np.testing.assert_allclose(score("group_fisher_memory"), np.divide(fisher, 2 * 16), rtol=1e-3)


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "grouped", "transposed", "attention_exact"])
def test_the_macs_that_a_channel_frees_are_the_difference_of_two_counts(name):
    graph = keras_pcp.build_graph(build(name))
    whole = keras_pcp.count_cost(graph).macs
    for group in graph:
        freed = keras_pcp.graph.cost.freed_macs(graph, group.name)
        for c in range(group.num_channels):
            keep = np.arange(group.num_channels) != c
            assert freed[c] == whole - keras_pcp.count_cost(graph, Selection({group.name: keep})).macs


def test_what_a_channel_frees_must_be_known():
    i = keras.Input((None, None, 2))
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(3, 1, name="conv")(i))))
    graph = keras_pcp.build_graph(model)
    model.compile("sgd", "mse")
    data = np.ones((2, 4, 4, 2)), np.ones((2, 2))
    for per in ("macs", "memory"):
        with pytest.raises(InvalidArgumentError, match="cannot count what removing a channel of group 'conv' saves"):
            keras_pcp.score_channels(model, graph, GroupFisher(per), data=data)
    assert keras_pcp.score_channels(model, graph, GroupFisher(), data=data)["conv"].shape == (3,)
    assert keras_pcp.score_channels(model, graph, "apoz", data=data)["conv"].tolist() == [1, 1, 1]


def test_obd_is_half_the_squared_weights_times_the_mean_squared_gradient(doubles):
    model = small()
    graph = keras_pcp.build_graph(model)
    data, losses = problem(model)
    slow = np.zeros(4)
    for index in (kernel_index(model, "stem"), kernel_index(model, "outer")):
        gradients, weight = slow_gradients(model, index, losses), model.weights[index].numpy()
        for c in range(4):
            for place in np.ndindex(weight.shape[:-1]):
                mean = sum(g[(*place, c)] ** 2 for g in gradients) / len(gradients)
                slow[c] += 0.5 * weight[(*place, c)] ** 2 * mean
    np.testing.assert_allclose(keras_pcp.score_channels(model, graph, "obd", data=data)["stem"], slow, rtol=1e-3)


def test_l1_and_l2_are_the_norms_of_the_filters():
    model = chain()
    graph = keras_pcp.build_graph(model)
    kernel = model.get_layer("conv").kernel.numpy()
    slow1 = [sum(abs(v) for v in kernel[..., c].ravel()) for c in range(5)]
    slow2 = [sum(v * v for v in kernel[..., c].ravel()) ** 0.5 for c in range(5)]
    np.testing.assert_allclose(keras_pcp.score_channels(model, graph, "l1")["conv"], slow1, rtol=1e-5)
    np.testing.assert_allclose(keras_pcp.score_channels(model, graph, "l2")["conv"], slow2, rtol=1e-5)


def test_scores_of_coupled_channels_are_sums_over_all_that_make_them():
    model = build("residual")
    graph = keras_pcp.build_graph(model)
    stem = next(iter(graph))
    kernels = [model.get_layer(n).kernel.numpy() for n in stem.producers]
    slow = [sum(np.abs(k[..., c]).sum() for k in kernels) for c in range(stem.num_channels)]
    np.testing.assert_allclose(keras_pcp.score_channels(model, graph, "l1")[stem.name], slow, rtol=1e-5)


def test_bn_scale_is_the_absolute_scale_and_says_where_there_is_none():
    model = chain()
    model.get_layer("bn").gamma.assign([1.0, -2.0, 0.5, 0.0, 3.0])
    scores = keras_pcp.score_channels(model, keras_pcp.build_graph(model), "bn_scale")
    assert scores["conv"].tolist() == [1.0, 2.0, 0.5, 0.0, 3.0]
    i = keras.Input((4, 4, 2))
    bare = keras.Model(i, L.Conv2D(2, 1)(L.Conv2D(3, 1, name="bare")(i)))
    with pytest.raises(InvalidArgumentError, match="'bare'"):
        keras_pcp.score_channels(bare, keras_pcp.build_graph(bare), "bn_scale")


def test_dead_probability_is_that_of_a_normal_number_below_zero():
    model = chain()
    bn = model.get_layer("bn")
    bn.gamma.assign([1.0, -2.0, 0.5, 0.0, 0.0])
    bn.beta.assign([0.0, 2.0, -1.0, 3.0, -3.0])
    scores = keras_pcp.score_channels(model, keras_pcp.build_graph(model), "dead_probability")["conv"]
    # 1 - Phi(0), Phi(1), Phi(-2); without deviation it is certain.
    np.testing.assert_allclose(scores, [0.5, 0.8413447, 0.0227501, 1.0, 0.0], rtol=1e-5)


def test_the_least_dead_of_several_normalizations_counts():
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(3, 1, name="conv")(i)
    a = L.ReLU()(L.BatchNormalization(name="a", scale=False)(x))
    b = L.ReLU()(L.BatchNormalization(name="b")(x))
    model = keras.Model(i, L.Conv2D(2, 1)(L.Add()([a, b])))
    model.get_layer("a").beta.assign([-1.0, 0.0, 1.0])
    model.get_layer("b").gamma.assign([2.0, 2.0, 2.0])
    model.get_layer("b").beta.assign([2.0, -2.0, -2.0])
    scores = keras_pcp.score_channels(model, keras_pcp.build_graph(model), "dead_probability")["conv"]
    np.testing.assert_allclose(scores, [0.8413447, 0.5, 0.8413447], rtol=1e-5)


def test_group_l1_is_the_sum_over_all_that_goes_with_a_channel():
    i = keras.Input((4, 4, 2))
    x = L.BatchNormalization(name="norm")(L.Conv2D(3, 3, name="made")(i))
    model = keras.Model(i, [L.Conv2D(2, 1, name="read")(x), L.Dense(4, name="flat")(L.Flatten()(x))])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(
            np.abs(rng.normal(size=weight.shape)) if "moving" in weight.name else rng.normal(size=weight.shape)
        )
    made, norm, read, flat = (model.get_layer(n) for n in ("made", "norm", "read", "flat"))

    def weights_of(c):
        return made.kernel[..., c], made.bias[c], norm.gamma[c], norm.beta[c], read.kernel[:, :, c], flat.kernel[c::3]

    expected = [sum(np.abs(np.asarray(w)).sum() for w in weights_of(c)) for c in range(3)]
    scores = keras_pcp.score_channels(model, keras_pcp.build_graph(model), "group_l1")["made"]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["bn_scale", "dead_probability"])
def test_a_group_without_normalization_is_named(criterion):
    i = keras.Input((4, 4, 2))
    bare = keras.Model(i, L.Conv2D(2, 1)(L.Conv2D(3, 1, name="bare")(i)))
    with pytest.raises(InvalidArgumentError, match="'bare'"):
        keras_pcp.score_channels(bare, keras_pcp.build_graph(bare), criterion)


def filters_of(model, group):
    """The kernels that make each channel, one after the other, as plain lists of numbers."""
    made = [model.get_layer(n).kernel.numpy() for n in group.producers]
    return [np.concatenate([k[..., c].ravel() for k in made]) for c in range(group.num_channels)]


def test_similarities_are_those_of_a_loop_over_pairs():
    model = build("residual")
    graph = keras_pcp.build_graph(model)
    scores = {n: keras_pcp.score_channels(model, graph, n) for n in ("fpgm", "least_distance", "cosine")}
    for group in graph:
        rows = filters_of(model, group)
        far = [[math.dist(a, b) for b in rows] for a in rows]
        angle = [[abs(a @ b) / math.sqrt((a @ a) * (b @ b)) for b in rows] for a in rows]
        for c in range(group.num_channels):
            others = [d for d in range(group.num_channels) if d != c]
            assert scores["fpgm"][group.name][c] == pytest.approx(sum(far[c]), rel=1e-5)
            assert scores["least_distance"][group.name][c] == pytest.approx(min(far[c][d] for d in others), rel=1e-4)
            assert scores["cosine"][group.name][c] == pytest.approx(1 - max(angle[c][d] for d in others), rel=1e-4)


def test_a_channel_that_is_masked_makes_no_other_one_redundant():
    model = chain()
    conv = model.get_layer("conv")
    kernel = conv.kernel.numpy()
    kernel[..., 1] = kernel[..., 0]
    conv.kernel.assign(kernel)
    graph = keras_pcp.build_graph(model)
    for criterion in ("least_distance", "cosine"):
        assert keras_pcp.score_channels(model, graph, criterion)["conv"][:2] == pytest.approx([0, 0], abs=1e-3)
        with keras_pcp.masked(model, graph, Selection({"conv": np.arange(5) != 0})):
            masked = keras_pcp.score_channels(model, graph, criterion)["conv"]
        apart = keras_pcp.prune_model(model, graph, Selection({"conv": np.arange(5) != 0}))
        alone = keras_pcp.score_channels(apart, keras_pcp.build_graph(apart), criterion)["conv"]
        np.testing.assert_allclose(masked[1:], alone, rtol=1e-5)


def test_similarities_are_defined_for_one_channel_and_for_filters_of_zeros():
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(3, 1, name="zeros", kernel_initializer="zeros")(L.Conv2D(1, 1, name="one")(i))
    model = keras.Model(i, L.Conv2D(2, 1)(x))
    graph = keras_pcp.build_graph(model)
    for criterion in ("fpgm", "least_distance", "cosine"):
        scores = keras_pcp.score_channels(model, graph, criterion)
        assert scores["zeros"].tolist() == [0, 0, 0]
        assert np.isfinite(scores["one"]).all()


def test_criteria_of_features_are_those_of_slow_loops():
    model, graph, data, maps = features_model()
    scores = {n: keras_pcp.score_channels(model, graph, n, data=data) for n in ("hrank", "mean_activation", "apoz")}
    chip = keras_pcp.score_channels(model, graph, Chip(samples=4), data=data)
    for name, batch in maps.items():
        norms = [np.linalg.svd(m.reshape(-1, m.shape[-1]), compute_uv=False).sum() for m in batch]
        for c in range(batch.shape[-1]):
            rank = [np.linalg.svd(m[..., c], compute_uv=False) for m in batch]
            rank = [sum(v > s.max() * 1e-5 for v in s) if s.max() > 0 else 0 for s in rank]
            assert scores["hrank"][name][c] == pytest.approx(sum(rank) / 7)
            values = [float(v) for v in batch[..., c].ravel()]
            assert scores["mean_activation"][name][c] == pytest.approx(sum(map(abs, values)) / len(values), rel=1e-4)
            assert scores["apoz"][name][c] == pytest.approx(1 - values.count(0.0) / len(values))
            falls = []
            for m, norm in zip(batch[:4], norms[:4], strict=True):
                without = m.reshape(-1, m.shape[-1]).copy()
                without[:, c] = 0
                falls.append(norm - np.linalg.svd(without, compute_uv=False).sum())
            assert chip[name][c] == pytest.approx(np.mean(falls), rel=1e-3, abs=1e-4)


def test_features_that_cannot_be_told_apart_are_an_error_that_names_the_group():
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(6, 1, name="conv")(i)
    halves = L.Add()([x[..., :2], x[..., 2:4]])  # two of the channels go together, the last two go alone
    model = keras.Model(i, L.Dense(2)(L.Flatten()(L.Concatenate()([x, halves]))))
    graph = keras_pcp.build_graph(model)
    with pytest.raises(InvalidArgumentError, match="group 'conv', equally often"):
        keras_pcp.score_channels(model, graph, "hrank", data=(inputs_for(model), np.zeros(3)))


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_criteria_that_need_data_say_so_at_once(criterion):
    model = chain()
    with pytest.raises(InvalidArgumentError, match=rf"'{criterion}' needs data=\(x, y\)"):
        keras_pcp.score_channels(model, keras_pcp.build_graph(model), criterion)


def test_bad_data_and_models_without_a_loss_are_refused():
    model = chain()
    graph = keras_pcp.build_graph(model)
    x, y = np.zeros((4, 4, 4, 2)), np.zeros((4, 3))
    with pytest.raises(InvalidArgumentError, match=r"is not compiled; call model.compile"):
        keras_pcp.score_channels(model, graph, "taylor", data=(x, y))
    model.compile("sgd", "mse")
    with pytest.raises(InvalidArgumentError, match=r"data holds arrays of different lengths: \[3, 4\]"):
        keras_pcp.score_channels(model, graph, "taylor", data=(x, y[:3]))
    with pytest.raises(InvalidArgumentError, match=r"data must be \(x, y\)"):
        keras_pcp.score_channels(model, graph, "hrank", data=(x,))
    for make in (lambda: GroupFisher("bytes"), lambda: TaylorGate(0), lambda: Chip(-1)):
        with pytest.raises(InvalidArgumentError, match="must be"):
            make()


def test_models_of_mixed_precision_are_scored():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("residual")
    finally:
        keras.config.set_dtype_policy("float32")
    data, _ = problem(model)
    for criterion in ("taylor", "group_fisher", "hrank", "lasso", "thinet"):
        scores = keras_pcp.score_channels(model, keras_pcp.build_graph(model), criterion, data=data)
        assert all(s.max() > 0 for s in scores.values())


class Block(L.Layer):
    """Hides a convolution."""

    def __init__(self, conv, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv

    def call(self, x):
        return keras.ops.relu(self.conv(x))


def test_a_model_with_a_block_is_scored_like_the_same_layers_without_it():
    i = keras.Input((5, 5, 2))
    conv, head = L.Conv2D(4, 3, name="conv"), L.Dense(3)
    plain = keras.Model(i, head(L.GlobalMaxPooling2D()(keras.ops.relu(conv(i)))))
    hidden = keras.Model(i, head(L.GlobalMaxPooling2D()(Block(conv)(i))))
    rng = np.random.default_rng(0)
    data = rng.normal(size=(6, 5, 5, 2)), rng.normal(size=(6, 3))
    for criterion in ("taylor", "group_fisher_memory", "apoz"):
        found = []
        for model in (plain, hidden):
            model.compile("sgd", "mse")
            found.append(keras_pcp.score_channels(model, keras_pcp.build_graph(model), criterion, data=data)["conv"])
        np.testing.assert_allclose(*found, rtol=1e-5)

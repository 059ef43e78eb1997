"""Selection, cost and strategy against numbers worked out by hand or by slow loops."""

import keras
import numpy as np
import pytest
from zoo import ZOO, build, inputs_for, outputs_of, random_selection

import keras_pcp
from keras_pcp.channels import ChannelGraph, ChannelGroup, CostTerm, Extent, Selection, WeightInfo
from keras_pcp.cost import Limits
from keras_pcp.errors import InvalidArgumentError, LimitError
from keras_pcp.schedules import cubic, linear
from keras_pcp.strategies.progressive import Evaluation, Progressive

L = keras.layers


@pytest.mark.parametrize("name", ["plain_flatten", "depthwise", "transposed", "grouped", "conv_1d", "conv_3d"])
def test_macs_are_counted_as_an_independent_slow_count(name):
    """Counts by watching shapes: a kernel element works once for each output position (input, if transposed)."""
    model = build(name)
    expected = 0
    for layer in model.layers:
        kind = type(layer).__name__
        if not getattr(layer, "weights", None) or kind in ("BatchNormalization", "PReLU", "Embedding"):
            continue
        shape = layer.input.shape if "Transpose" in kind else layer.output.shape
        kernels = [w for w in layer.weights if "kernel" in w.path]
        expected += sum(int(np.prod(shape[1:-1])) * int(np.prod(k.shape)) for k in kernels)
    assert keras_pcp.count_cost(model).macs == expected


def test_known_models_have_their_published_macs():
    """4.09 G for ResNet-50 with its stride in the first 1x1 convolution counts 3.86 G; MobileNetV2 0.30 G."""
    resnet = keras.applications.ResNet50(weights=None)
    assert keras_pcp.count_cost(resnet).macs == pytest.approx(3.86e9, rel=0.01)
    mobile = keras.applications.MobileNetV2(weights=None)
    assert keras_pcp.count_cost(mobile).macs == pytest.approx(0.30e9, rel=0.01)


def test_bytes_follow_the_dtype():
    i = keras.Input((4,))
    half = keras.Model(i, L.Dense(3, dtype="float16")(i))
    assert keras_pcp.count_cost(half).bytes == 2 * 15


def group(name, n, parts=()):
    return ChannelGroup(name, n, (), parts=parts)


def graph_of(*groups, factors=None):
    """A graph in which every channel of group i costs factors[i] MACs, and as many parameters."""
    terms, weights = [], []
    for g, factor in zip(groups, factors or [1] * len(groups), strict=True):
        extent = Extent(g.num_channels, ((g.name, np.arange(g.num_channels)),))
        terms.append(CostTerm(g.name, factor, (extent,)))
        weights.append(WeightInfo(g.name, g.name, 4, (extent, Extent(factor))))
    return ChannelGraph("m", {g.name: g for g in groups}, (), tuple(weights), (), tuple(terms))


def test_select_by_ratio_removes_the_lowest_scores():
    graph = graph_of(group("a", 4), group("b", 4))
    scores = {"a": np.array([4.0, 1.0, 3.0, 2.0]), "b": np.array([40.0, 10.0, 30.0, 200.0])}
    local = keras_pcp.select_by_ratio(graph, scores, 0.5, scope="local").removed()
    assert {k: v.tolist() for k, v in local.items()} == {"a": [1, 3], "b": [1, 2]}
    per_group = keras_pcp.select_by_ratio(graph, scores, {"a": 0.25}, scope="local").removed()
    assert {k: v.tolist() for k, v in per_group.items()} == {"a": [1]}
    # divided by their means (2.5 and 70): a = 1.6 .4 1.2 .8, b = .57 .14 .43 2.86
    shared = keras_pcp.select_by_ratio(graph, scores, 0.5).removed()
    assert {k: v.tolist() for k, v in shared.items()} == {"a": [1], "b": [0, 1, 2]}


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 0.99])
def test_min_channels_multiples_and_parts_are_kept(scope, ratio):
    part = np.array([0, 1, 2])
    graph = graph_of(group("a", 20), group("b", 9, parts=(part,)), group("c", 3))
    scores = {"a": np.arange(20.0), "b": np.arange(9.0), "c": np.ones(3)}
    keep = keras_pcp.select_by_ratio(graph, scores, ratio, scope=scope, min_channels=2, multiple_of=4).keep
    kept = {n: int(m.sum()) for n, m in keep.items()}
    assert kept["a"] % 4 == 0
    assert kept["b"] in (4, 8, 9)
    assert kept["c"] == 3
    assert keep["b"][part].any()
    assert kept["a"] >= 20 - int((20 if scope == "local" else 32) * ratio)


def test_select_by_cost_removes_as_little_as_possible():
    graph = graph_of(group("a", 10), group("b", 10), factors=[3, 1])
    scores = {"a": np.arange(10.0), "b": np.arange(10.0)}
    selection = keras_pcp.select_by_cost(graph, scores, max_macs=0.5)
    assert keras_pcp.count_cost(graph, selection).macs <= 20
    fewer = Selection({n: m | (np.arange(10) == np.flatnonzero(~m)[-1]) for n, m in selection.keep.items()})
    assert keras_pcp.count_cost(graph, fewer).macs > 20
    both = keras_pcp.select_by_cost(graph, scores, max_macs=30, max_bytes=0.5)
    assert keras_pcp.count_cost(graph, both).bytes <= 0.5 * keras_pcp.count_cost(graph).bytes
    unchanged = keras_pcp.select_by_cost(graph, scores, max_macs=40)
    assert unchanged.num_removed == 0


def test_a_limit_out_of_reach_says_what_can_be_reached():
    graph = graph_of(group("a", 10))
    with pytest.raises(LimitError, match=r"cannot get below 1 \(0.100 of the unpruned model\)"):
        keras_pcp.select_by_cost(graph, {"a": np.ones(10)}, max_macs=0.05)


@pytest.mark.parametrize("value", [1.0, 0.0, -0.1, 2.5, 0, -5, True, "half", float("nan")])
def test_limits_out_of_range_are_refused(value):
    with pytest.raises(InvalidArgumentError, match="max_params"):
        Limits(max_params=value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, s: keras_pcp.select_by_ratio(g, s, 1.0), r"\[0, 1\)"),
        (lambda g, s: keras_pcp.select_by_ratio(g, s, 0.5, scope="some"), "scope"),
        (lambda g, s: keras_pcp.select_by_ratio(g, s, {"a": 0.5}), "scope='local'"),
        (lambda g, s: keras_pcp.select_by_ratio(g, s, {"z": 0.5}, scope="local"), "'z'"),
        (lambda g, s: keras_pcp.select_by_ratio(g, {}, 0.5), "scores"),
        (lambda g, s: keras_pcp.select_by_ratio(g, {"a": np.ones(3)}, 0.5), "4 numbers"),
        (lambda g, s: keras_pcp.select_by_ratio(g, s, 0.5, min_channels=0), "min_channels"),
        (lambda g, s: keras_pcp.count_cost(g, Selection({"a": np.zeros(4, bool)})), "all 4 channels"),
        (lambda g, s: keras_pcp.count_cost(g, Selection({"a": np.ones(3, bool)})), "3 entries"),
        (lambda g, s: Selection({"a": np.ones(3)}), "boolean"),
        (lambda g, s: Selection({"a": np.array([True, False])}).then(Selection({"a": np.ones(2, bool)})), "1 channels"),
        (lambda g, s: Progressive(step=0.0), "step"),
        (lambda g, s: Progressive(groups_per_round=0), "groups_per_round"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call(graph_of(group("a", 4)), {"a": np.ones(4)})


class Oracle:
    """An observation in which removing a channel of group g costs known amounts."""

    def __init__(self, graph, drops, losses=None):
        self.graph, self.drops, self.losses = graph, drops, losses or dict.fromkeys(drops, 0.0)
        self.asked = []
        self.left = None

    def scores(self):
        return {n: np.arange(int(m.sum()), dtype=float) for n, m in self.left.keep.items()}

    def evaluate(self, selection):
        self.asked.append(selection)
        removed = {n: int((~m).sum()) for n, m in selection.keep.items()}
        return Evaluation(
            1 - sum(self.drops[n] * k for n, k in removed.items()), sum(self.losses[n] * k for n, k in removed.items())
        )


def one_round(graph, strategy, oracle, bounds, target, state=None):
    state = state or strategy.init(graph, bounds)
    oracle.left = state.selection
    return strategy.update(state, oracle, graph, bounds, target)


def test_a_round_attempts_every_group_and_prunes_those_with_the_smallest_drops():
    graph = graph_of(group("a", 10), group("b", 10), group("c", 10))
    oracle = Oracle(graph, {"a": 0.03, "b": 0.01, "c": 0.02})
    state = one_round(graph, Progressive(groups_per_round=2), oracle, {"macs": 15.0}, 2 / 15)
    last = state.rounds[-1]
    assert [a.group for a in last.attempts] == ["b", "c", "a"]
    assert last.chosen == ("b", "c")
    assert len(oracle.asked) == 1 + 3
    assert {n: v.tolist() for n, v in state.selection.removed().items()} == {"b": [0], "c": [0]}
    assert [a.drop for a in last.attempts] == pytest.approx([0.01, 0.02, 0.03])


def test_lazy_attempts_choose_what_all_attempts_choose_with_fewer_evaluations():
    names = "abcdefghijkl"
    graph = graph_of(*(group(n, 12) for n in names))
    drops = {n: 0.001 * (i + 1) ** 2 for i, n in enumerate(names)}
    chosen, asked = {}, {}
    for attempts in ("lazy", "all"):
        oracle = Oracle(graph, drops)
        state = None
        for target in np.arange(1, 11) / 10:
            state = one_round(
                graph, Progressive(attempts=attempts, groups_per_round=3), oracle, {"macs": 90.0}, target, state
            )
        chosen[attempts] = [r.chosen for r in state.rounds]
        asked[attempts] = len(oracle.asked)
    assert chosen["lazy"] == chosen["all"]
    assert asked["lazy"] < 0.6 * asked["all"]


def test_a_lazy_drop_is_measured_anew_after_some_rounds():
    graph = graph_of(group("a", 30), group("b", 30))
    oracle = Oracle(graph, {"a": 0.0, "b": 0.1})
    state = None
    for target in np.arange(1, 7) / 20:
        state = one_round(
            graph, Progressive(groups_per_round=1, attempts="lazy"), oracle, {"macs": 30.0}, target, state
        )
    assert [len(r.attempts) for r in state.rounds] == [2, 1, 1, 1, 1, 2]


def test_ties_are_broken_by_the_loss():
    graph = graph_of(group("a", 10), group("b", 10))
    oracle = Oracle(graph, {"a": 0.0, "b": 0.0}, {"a": 0.2, "b": 0.1})
    assert one_round(graph, Progressive(groups_per_round=1), oracle, {"macs": 15.0}, 0.2).rounds[-1].chosen == ("b",)


def test_attempts_cost_about_the_same_in_every_group():
    graph = graph_of(group("a", 40), group("b", 10), factors=[1, 4])
    oracle = Oracle(graph, {"a": 0.1, "b": 0.1})
    state = one_round(graph, Progressive(groups_per_round=2), oracle, {"macs": 40.0}, 0.4)
    removed = {a.group: len(a.removed) for a in state.rounds[-1].attempts}
    assert removed == {"a": 8, "b": 2}


def test_the_last_round_removes_no_more_than_the_limit_asks_for():
    graph = graph_of(group("a", 10), group("b", 10))
    oracle = Oracle(graph, {"a": 0.5, "b": 0.0})
    strategy, bounds = Progressive(groups_per_round=2), {"macs": 13.0}
    state = one_round(graph, strategy, oracle, bounds, 1.0)
    assert [(a.group, len(a.removed)) for a in state.rounds[-1].attempts] == [("b", 4), ("a", 4)]
    assert {n: len(v) for n, v in state.selection.removed().items()} == {"b": 4, "a": 3}


def test_rounds_reach_the_limit_and_never_empty_a_group():
    graph = graph_of(group("a", 6), group("b", 6, parts=(np.array([0, 1]),)))
    strategy, bounds = Progressive(groups_per_round=1), {"macs": 3.0}
    oracle = Oracle(graph, {"a": 0.0, "b": 0.1})
    state = None
    for _ in range(20):
        state = one_round(graph, strategy, oracle, bounds, 1.0, state)
        if keras_pcp.count_cost(graph, state.selection).macs <= 3:
            break
    kept = state.selection.keep
    assert keras_pcp.count_cost(graph, state.selection).macs == 3
    assert kept["a"].sum() >= 1
    assert kept["b"][:2].any()


def test_schedules_begin_at_nothing_and_end_at_everything():
    for schedule in (linear, cubic):
        values = [schedule(t) for t in np.linspace(0, 1, 11)]
        assert values[0] == 0
        assert values[-1] == 1
        assert values == sorted(values)


def test_widening_refuses_a_model_that_does_not_fit():
    model = build("residual")
    graph = keras_pcp.build_graph(model)
    pruned = keras_pcp.prune_model(model, graph, random_selection(graph, 0))
    with pytest.raises(InvalidArgumentError, match="has shape"):
        keras_pcp.widen_model(pruned, model, graph, random_selection(graph, 1))


def test_pruning_leaves_the_original_untouched():
    for name in ("nested", "channel_shuffle", "slicing"):
        model = build(name)
        graph = keras_pcp.build_graph(model)
        before, config, x = model.get_weights(), model.to_json(), inputs_for(model)
        expected = outputs_of(model, x)
        keras_pcp.prune_model(model, graph, random_selection(graph, 0))
        assert model.to_json() == config
        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(expected, outputs_of(model, x), strict=True))


def test_the_zoo_is_large_enough():
    assert len(ZOO) >= 18

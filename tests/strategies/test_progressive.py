"""Selection, cost and strategy against numbers worked out by hand or by slow loops."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from zoo import ZOO, build, inputs_for, outputs_of, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, LimitError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import ChannelGroup, CostTerm, Extent, WeightInfo
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.graph.selection import Selection
from keras_pcp.schedules import cubic, linear
from keras_pcp.select.budget import Limits, progress
from keras_pcp.strategies.baselines import LayerByLayer, OneShot, RandomWidths
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.strategies.racing import race
from keras_pcp.strategies.rounds import Evaluation, State

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


def test_select_by_cost_lets_groups_that_round_alike_keep_a_channel_each_as_far_as_it_goes():
    x = keras.Input((8,))
    model = keras.Model(x, L.Dense(2)(L.Dense(8, name="b")(L.Dense(8, name="a")(x))))
    graph = keras_pcp.build_graph(model)
    scores = {name: np.arange(8.0) for name in "ab"}

    def widths(limit):
        found = keras_pcp.select_by_cost(graph, scores, max_macs=limit, scope="local")
        return [int(found.keep[name].sum()) for name in "ab"]

    def cost(a, b):
        return 8 * a + a * b + 2 * b

    assert [widths(cost(*w)) for w in ((6, 6), (6, 5), (5, 5))] == [[6, 6], [6, 5], [5, 5]]
    assert widths(cost(6, 5) - 1) == [5, 6]
    assert widths(cost(5, 6) - 1) == [5, 5]


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
        (lambda g, s: keras_pcp.select_by_ratio(g, {"a": np.ones(3)}, 0.5), "4 finite numbers"),
        (lambda g, s: keras_pcp.select_by_ratio(g, s, 0.5, min_channels=0), "min_channels"),
        (lambda g, s: keras_pcp.count_cost(g, Selection({"a": np.zeros(4, bool)})), "all 4 channels"),
        (lambda g, s: keras_pcp.count_cost(g, Selection({"a": np.ones(3, bool)})), "3 entries"),
        (lambda g, s: Selection({"a": np.ones(3)}), "boolean"),
        (lambda g, s: Selection({"a": np.array([True, False])}).then(Selection({"a": np.ones(2, bool)})), "1 channels"),
        (lambda g, s: Progressive(step=0.0), "step"),
        (lambda g, s: Progressive(step=1.0), "step"),
        (lambda g, s: Progressive(step=0), "step"),
        (lambda g, s: Progressive(step=True), "step"),
        (lambda g, s: Progressive(groups_per_round=0), "groups_per_round"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call(graph_of(group("a", 4)), {"a": np.ones(4)})


class Oracle:
    """An observation in which removing a channel of group g costs known amounts, with noise from chunk to chunk.

    The noise belongs to a chunk and a group, so that it is the same in every round, as with real samples.
    """

    CHUNKS = 64

    def __init__(self, graph, drops, losses=None, noise=0.0):
        self.graph, self.drops, self.losses = graph, drops, losses or dict.fromkeys(drops, 0.0)
        self.asked, self.spent = [], 0.0
        self.left = None
        rng = np.random.default_rng(0)
        self.noise = {n: noise * d * rng.normal(size=self.CHUNKS) for n, d in drops.items()}
        self.parts = [slice(i, i + 8) for i in range(0, self.CHUNKS, 8)]

    def scores(self):
        return [{n: np.arange(int(m.sum()), dtype=float) for n, m in self.left.keep.items()}]

    def chunks(self, selection):
        removed = {n: int((~m).sum()) for n, m in selection.keep.items()}
        metric = 1 - sum((self.drops[n] + self.noise[n]) * k for n, k in removed.items())
        loss = sum(self.losses[n] * k for n, k in removed.items())
        return np.stack(np.broadcast_arrays(metric * np.ones(self.CHUNKS), loss), axis=1)

    def evaluate(self, selection):
        self.asked.append(selection)
        self.spent += 1
        return Evaluation(*self.chunks(selection).mean(axis=0))

    def compare(self, selections, part):
        self.spent += (1 + len(selections)) * (part.stop - part.start) / self.CHUNKS
        before = self.chunks(self.left)[part]
        return before, {k: (self.chunks(s)[part] - before) * [-1, 1] for k, s in selections.items()}


def one_round(graph, strategy, oracle, bounds, target, state=None):
    state = state or strategy.init(graph, bounds)
    oracle.left = state.selection
    return strategy.update(state, oracle, graph, bounds, target)


def test_a_round_attempts_every_group_and_prunes_those_with_the_smallest_drops():
    graph = graph_of(group("a", 10), group("b", 10), group("c", 10))
    oracle = Oracle(graph, {"a": 0.03, "b": 0.01, "c": 0.02})
    state = one_round(graph, Progressive(groups_per_round=2, attempts="exact"), oracle, {"macs": 15.0}, 2 / 15)
    last = state.rounds[-1]
    assert [a.group for a in last.attempts] == ["b", "c", "a"]
    assert last.chosen == ("b", "c")
    assert len(oracle.asked) == 1 + 3
    assert {n: v.tolist() for n, v in state.selection.removed().items()} == {"b": [0], "c": [0]}
    assert [a.drop for a in last.attempts] == pytest.approx([0.01, 0.02, 0.03])


def test_fast_attempts_choose_what_exact_attempts_choose_with_a_fraction_of_the_evaluations():
    names = "abcdefghijkl"
    graph = graph_of(*(group(n, 12) for n in names))
    drops = {n: 0.001 * (i + 1) ** 2 for i, n in enumerate(names)}
    chosen, spent, shares = {}, {}, {}
    for attempts in ("fast", "exact"):
        oracle, state = Oracle(graph, drops, noise=0.2), None
        strategy = Progressive(attempts=attempts, groups_per_round=3)
        for target in np.arange(1, 11) / 10:
            state = one_round(graph, strategy, oracle, {"macs": 90.0}, target, state)
        chosen[attempts] = [r.chosen for r in state.rounds]
        spent[attempts] = oracle.spent
        shares[attempts] = {a.share for r in state.rounds for a in r.attempts}
    assert chosen["fast"] == chosen["exact"]
    assert spent["fast"] < 0.5 * spent["exact"]
    assert shares["exact"] == {1}
    assert min(shares["fast"]) == 1 / 8


def test_what_was_measured_in_earlier_rounds_counts_as_far_as_it_tells():
    rng = np.random.default_rng(1)
    truth = {"a": 0.10 + rng.normal(0, 0.3, 64), "b": 0.12 + rng.normal(0, 0.3, 64)}  # unclear without memory
    parts = [slice(i, i + 8) for i in range(0, 64, 8)]

    def compare(names, part):
        asked.extend(names)
        return {n: np.stack([truth[n][part], np.zeros(8)], axis=1) for n in names}

    asked = []
    first = race({"a": (1,), "b": (2,)}, {}, compare, parts, 1, 3.0)
    assert {m.share for m in first.values()} == {1}
    assert first["a"].mean()[0] == pytest.approx(truth["a"].mean())
    asked.clear()
    again = race({"a": (1,), "b": (2,)}, first, compare, parts, 1, 3.0)
    assert len(asked) == 2  # one part each: nothing has changed
    assert again["b"].mean()[0] == pytest.approx(truth["b"].mean())
    old, spent = truth["b"], {}
    for kind, drops in {"alike": 2 * old, "unlike": 0.12 + rng.normal(0, 0.3, 64)}.items():
        asked.clear()
        truth["b"] = drops
        other = race({"a": (1,), "b": (3, 4)}, first, compare, parts, 1, 3.0)
        spent[kind] = asked.count("b")
        assert other["b"].removed == (3, 4)
        assert spent["alike"] < 8 or other["b"].mean()[0] == pytest.approx(drops.mean())
    assert spent["alike"] < spent["unlike"]


def test_what_was_only_expected_in_earlier_rounds_does_not_count_as_measured():
    """An attempt that dropped out after one part is not clear because that part gives the same again."""
    noise = np.zeros(64)
    noise[:8], noise[8:] = -7.0, 1.0  # the first part is far off the mean
    truth = {"a": 0.3 + 0.01 * noise, "b": np.full(64, 0.32), "c": np.zeros(64)}
    parts = [slice(i, i + 8) for i in range(0, 64, 8)]

    def compare(names, part):
        return {n: np.stack([truth[n][part], np.zeros(8)], axis=1) for n in names}

    candidates = {"a": (1,), "b": (2,), "c": (3,)}
    first = race(candidates, {}, compare, parts, 1, 0.0)
    assert first["a"].mean()[0] == pytest.approx(0.23)  # as far as the first part tells
    early = {n: replace(m, error=0.05) for n, m in first.items()}
    again = race(candidates, early, compare, parts, 2, 3.0)
    assert again["a"].share == again["b"].share == 1
    assert again["a"].mean()[0] == pytest.approx(truth["a"].mean())


def test_an_attempt_that_ruins_the_model_does_not_stop_the_race():
    rng = np.random.default_rng(0)
    truth = {n: rng.normal(m, 0.1, 64) for n, m in {"a": 0.10, "b": 0.11, "c": np.inf}.items()}
    parts = [slice(i, i + 8) for i in range(0, 64, 8)]

    def compare(names, part):
        return {n: np.stack([truth[n][part], np.zeros(8)], axis=1) for n in names}

    found = race(dict.fromkeys(truth, (0,)), {}, compare, parts, 1, 3.0)
    assert found["a"].share > 1 / 8
    assert max(found, key=lambda n: found[n].value()) == "c"
    assert found["c"].share < 1


def test_the_three_ways_to_select():
    graph = graph_of(group("a", 10), group("b", 10), group("c", 10), group("d", 10))
    drops, bounds = {"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.04}, {"macs": 20.0}

    def chosen(**options):
        strategy = Progressive(groups_per_round=3, **options)
        return one_round(graph, strategy, Oracle(graph, drops), bounds, 3 / 20).rounds[-1].chosen

    assert chosen(select="topk") == ("a", "b", "c")
    assert chosen(select="joint") == ("a", "b", "c")
    assert chosen(select="threshold", max_drop=0.031) == ("a", "b")
    assert chosen(select="threshold", max_drop=0.0) == ("a",)


def test_an_attempt_may_be_a_number_of_channels_whatever_they_cost():
    graph = graph_of(group("a", 10), group("b", 20), group("c", 4))
    drops, bounds = {"a": 0.01, "b": 0.02, "c": 0.03}, {"macs": 17.0}
    strategy = Progressive(step=3, groups_per_round=2)
    assert strategy.rounds_needed(graph, bounds) == 3  # 17 channels have to go, 6 in a round
    for target in (0.01, 0.9):
        state = one_round(graph, strategy, Oracle(graph, drops), bounds, target)
        assert {a.group: len(a.removed) for a in state.rounds[0].attempts} == {"a": 3, "b": 3, "c": 3}
    pairs = one_round(graph, Progressive(step=3, multiple_of=2), Oracle(graph, drops), bounds, 0.5)
    assert {a.group: len(a.removed) for a in pairs.rounds[0].attempts} == {"a": 4, "b": 4, "c": 2}  # c keeps two
    while progress(count_cost(graph, state.selection), count_cost(graph), bounds) < 1:
        state = one_round(graph, strategy, Oracle(graph, drops), bounds, 1.0, state)
    assert count_cost(graph, state.selection).macs == 17


def test_joint_selection_sees_what_was_chosen_before():
    class Coupled(Oracle):
        """Together, a and b cost much."""

        def chunks(self, selection):
            both = not selection.keep["a"].all() and not selection.keep["b"].all()
            return super().chunks(selection) - [0.5 * both, 0]

    graph = graph_of(group("a", 10), group("b", 10), group("c", 10))
    drops, bounds = {"a": 0.01, "b": 0.02, "c": 0.03}, {"macs": 15.0}
    for select, expected in (("topk", ("a", "b")), ("joint", ("a", "c"))):
        for attempts in ("fast", "exact"):
            strategy = Progressive(groups_per_round=2, select=select, attempts=attempts)
            assert one_round(graph, strategy, Coupled(graph, drops), bounds, 2 / 15).rounds[-1].chosen == expected


def test_each_group_is_attempted_by_the_criterion_that_costs_it_least():
    class Two(Oracle):
        """In group a the last channels cost nothing, in group b the first ones."""

        def scores(self):
            [up] = super().scores()
            return [up, {n: -v for n, v in up.items()}]

        def chunks(self, selection):
            cost = (~selection.keep["a"][:5]).sum() + (~selection.keep["b"][5:]).sum()
            return np.tile([1 - 0.1 * cost, 0.0], (self.CHUNKS, 1))

    graph = graph_of(group("a", 10), group("b", 10))
    for attempts in ("fast", "exact"):
        strategy = Progressive(groups_per_round=2, attempts=attempts)
        state = one_round(graph, strategy, Two(graph, {"a": 0.0, "b": 0.0}), {"macs": 14.0}, 1.0)
        removed = {n: set(v.tolist()) for n, v in state.selection.removed().items()}
        assert removed == {"a": {7, 8, 9}, "b": {0, 1, 2}}


def test_floors_and_multiples_may_differ_by_group():
    graph = graph_of(group("a", 16), group("b", 16))
    strategy = Progressive(groups_per_round=2, min_channels={"a": 12}, multiple_of={"b": 4})
    state = None
    for _ in range(6):
        state = one_round(graph, strategy, Oracle(graph, {"a": 0.0, "b": 0.0}), {"macs": 18.0}, 1.0, state)
    kept = {n: int(m.sum()) for n, m in state.selection.keep.items()}
    assert kept == {"a": 12, "b": 4}
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        Progressive(min_channels={"nowhere": 2}).init(graph, {"macs": 18.0})


def test_the_state_of_a_run_becomes_json_and_back():
    graph = graph_of(group("a", 10), group("b", 10))
    strategy, bounds = Progressive(groups_per_round=1), {"macs": 10.0}
    first = one_round(graph, strategy, Oracle(graph, {"a": 0.01, "b": 0.02}, noise=0.1), bounds, 0.3)
    again = State.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    oracles = [Oracle(graph, {"a": 0.01, "b": 0.02}, noise=0.1) for _ in range(2)]
    after = [one_round(graph, strategy, o, bounds, 0.6, s) for o, s in zip(oracles, (first, again), strict=True)]
    assert after[0].selection == after[1].selection
    assert oracles[0].spent == oracles[1].spent


CONTROLS = {
    "uniform": OneShot(),
    "global": OneShot(scope="global"),
    "layerwise": LayerByLayer(),
    "random": RandomWidths(draws=3, seed=4),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_reach_the_limit(name):
    graph = graph_of(group("a", 20), group("b", 12, parts=(np.array([0, 1]),)), group("c", 8))
    strategy, bounds = CONTROLS[name], {"macs": 20.0}
    oracle, state = Oracle(graph, {"a": 0.01, "b": 0.02, "c": 0.03}), None
    for _ in range(strategy.rounds_needed(graph, bounds)):
        state = one_round(graph, strategy, oracle, bounds, 1.0, state)
    widths = {n: int(m.sum()) for n, m in state.selection.keep.items()}
    assert sum(widths.values()) <= 20
    assert state.rounds[-1].macs == sum(widths.values())
    if name in ("uniform", "layerwise"):
        assert widths == {"a": 10, "b": 6, "c": 4}
    if name == "layerwise":
        assert [r.chosen for r in state.rounds] == [("a",), ("b",), ("c",)]
    else:
        assert len(state.rounds) == 1
    if name == "random":
        assert sum(widths.values()) >= 17
        other = one_round(graph, RandomWidths(draws=3, seed=5), oracle, bounds, 1.0)
        assert {n: int(m.sum()) for n, m in other.selection.keep.items()} != widths


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


def unequal():
    """A group whose channels differ in what they cost: the first four are read four times, and one of these is frozen.

    The least cost is 2 * 8 + 5 * 50 = 266, with the best channel it is 2 * 8 + 8 * 50 = 416.
    """
    x = keras.Input((8,))
    h = L.Dense(16, name="h")(x)
    model = keras.Model(x, L.Dense(50)(L.Concatenate()([h, h[:, :4], h[:, :4], h[:, :4]])))
    model.compile(loss="mse")
    kernel = model.get_layer("h").kernel
    kernel.assign(np.ones(kernel.shape) * np.arange(16, 0, -1.0))  # and those have the highest scores
    return model


def test_a_limit_that_the_best_channels_cannot_meet_is_an_error():
    model = unequal()
    graph = keras_pcp.build_graph(model)
    scores = keras_pcp.score_channels(model, graph, "l1")
    with pytest.raises(LimitError, match="cannot get below 416"):
        keras_pcp.select_by_cost(graph, scores, max_macs=326)


@pytest.mark.parametrize("strategy", [OneShot(), RandomWidths()])
def test_controls_end_where_the_best_channels_cannot_meet_a_limit(strategy):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(32, 8)), rng.normal(size=(32, 50))
    options = {"max_macs": 326, "validation_data": samples, "strategy": strategy, "verbose": False}
    with pytest.raises(LimitError, match="cannot get below 416"):
        keras_pcp.search_widths(unequal(), **options)

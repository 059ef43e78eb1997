"""Selection by ratio and by cost, against numbers worked out by hand."""

import keras
import numpy as np
import pytest
from by_hand import graph_of, group, unequal

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, LimitError
from keras_pcp.graph.selection import Selection
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.select.select import just_enough
from keras_pcp.strategies.progressive import Progressive

L = keras.layers


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
    # as they are: 1 2 3 4 10 30 40 200, but a keeps its best
    as_they_are = keras_pcp.select_by_ratio(graph, scores, 0.5, scope="threshold").removed()
    assert {k: v.tolist() for k, v in as_they_are.items()} == {"a": [1, 2, 3]}


@pytest.mark.parametrize("scope", ["local", "global", "threshold"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 0.99])
def test_min_channels_and_multiples_are_kept(scope, ratio):
    graph = graph_of(group("a", 20), group("b", 9), group("c", 3))
    scores = {"a": np.arange(20.0), "b": np.arange(9.0), "c": np.ones(3)}
    keep = keras_pcp.select_by_ratio(graph, scores, ratio, scope=scope, min_channels=2, multiple_of=4).keep
    kept = {n: int(m.sum()) for n, m in keep.items()}
    assert kept["a"] % 4 == 0
    assert kept["b"] in (4, 8, 9)
    assert kept["c"] == 3
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


def test_a_limit_that_the_best_channels_cannot_meet_is_an_error():
    model = unequal()
    graph = keras_pcp.build_graph(model)
    scores = keras_pcp.score_channels(model, graph, "l1")
    with pytest.raises(LimitError, match="cannot get below 416"):
        keras_pcp.select_by_cost(graph, scores, max_macs=326)


@pytest.mark.parametrize(("limit", "widths"), [(0.95, [20, 18]), (0.6, [16, 8]), (0.3, [8, 4])])
def test_widths_follow_shares_as_far_as_there_are_channels(limit, widths):
    graph = graph_of(group("a", 20), group("b", 20))
    problem = Problem.of(graph, Limits(max_macs=limit))
    scores = {"a": np.arange(20.0), "b": np.arange(20.0)}
    found = just_enough(problem, scores, scope="local", shares={"a": 1.0, "b": 0.5})
    assert [int(mask.sum()) for mask in found.keep.values()] == widths

"""Rounds of attempts, against numbers worked out by hand."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from by_hand import Oracle, graph_of, group
from runs import one_round

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.strategies.progressive import Progressive

L = keras.layers


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
    assert sorted(shares["fast"])[:2] == [0, 1 / 8]  # some rest; the others are measured on a part, at least


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
    problem = Problem.of(graph, Limits(max_macs=17))
    assert strategy.rounds(problem) == 3  # 17 channels have to go, 6 in a round
    for target in (0.01, 0.9):
        state = one_round(graph, strategy, Oracle(graph, drops), bounds, target)
        assert {a.group: len(a.removed) for a in state.rounds[0].attempts} == {"a": 3, "b": 3, "c": 3}
    pairs = one_round(graph, Progressive(step=3, multiple_of=2), Oracle(graph, drops), bounds, 0.5)
    assert {a.group: len(a.removed) for a in pairs.rounds[0].attempts} == {"a": 4, "b": 4, "c": 2}  # c keeps two
    while problem.progress(state.selection) < 1:
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

        def scores(self, criterion="first"):
            up = super().scores()
            return up if criterion == "first" else {n: -v for n, v in up.items()}

        def chunks(self, selection):
            cost = (~selection.keep["a"][:5]).sum() + (~selection.keep["b"][5:]).sum()
            return np.tile([1 - 0.1 * cost, 0.0], (self.CHUNKS, 1))

    graph = graph_of(group("a", 10), group("b", 10))
    for attempts in ("fast", "exact"):
        strategy = Progressive(groups_per_round=2, attempts=attempts)
        oracle = Two(graph, {"a": 0.0, "b": 0.0})
        oracle.criteria = ["first", "second"]
        state = one_round(graph, strategy, oracle, {"macs": 14.0}, 1.0)
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
        Progressive(min_channels={"nowhere": 2}).init(Problem.of(graph, Limits(max_macs=18)))


def test_the_state_of_a_run_becomes_json_and_back():
    graph = graph_of(group("a", 10), group("b", 10))
    strategy, bounds = Progressive(groups_per_round=1), {"macs": 10.0}
    first = one_round(graph, strategy, Oracle(graph, {"a": 0.01, "b": 0.02}, noise=0.1), bounds, 0.3)
    data = json.loads(json.dumps(strategy.state_to_json(first.state)))
    again = replace(first, state=strategy.state_from_json(data))
    assert again.state == first.state
    assert again.state.known["a"].drops.tolist() == first.state.known["a"].drops.tolist()
    oracles = [Oracle(graph, {"a": 0.01, "b": 0.02}, noise=0.1) for _ in range(2)]
    after = [one_round(graph, strategy, o, bounds, 0.6, s) for o, s in zip(oracles, (first, again), strict=True)]
    assert after[0].selection == after[1].selection
    assert oracles[0].spent == oracles[1].spent


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
    graph = graph_of(group("a", 6), group("b", 6))
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
    assert kept["b"].sum() >= 1

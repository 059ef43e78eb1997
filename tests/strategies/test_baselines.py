"""The strategies to compare with reach the limit too."""

import numpy as np
import pytest
from by_hand import Oracle, graph_of, group, unequal
from runs import one_round

import keras_pcp
from keras_pcp.errors import LimitError
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.strategies.baselines import LayerByLayer, OneShot, RandomWidths

CONTROLS = {
    "uniform": OneShot(),
    "global": OneShot(scope="global"),
    "layerwise": LayerByLayer(),
    "random": RandomWidths(draws=3),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_reach_the_limit(name):
    graph = graph_of(group("a", 20), group("b", 12), group("c", 8))
    strategy, bounds = CONTROLS[name], {"macs": 20.0}
    oracle, state = Oracle(graph, {"a": 0.01, "b": 0.02, "c": 0.03}), None
    for _ in range(strategy.rounds(Problem.of(graph, Limits(max_macs=20)))):
        state = one_round(graph, strategy, oracle, bounds, 1.0, state)
    widths = {n: int(m.sum()) for n, m in state.selection.keep.items()}
    assert sum(widths.values()) <= 20
    if name in ("uniform", "layerwise"):
        assert widths == {"a": 10, "b": 6, "c": 4}
    if name == "layerwise":
        removed = [r.keep.removed().keys() for r in state.rounds]
        assert removed == [{"a"}, {"a", "b"}, {"a", "b", "c"}]
    else:
        assert len(state.rounds) == 1
    if name == "random":
        assert sum(widths.values()) >= 17
        oracle.seed = 5
        other = one_round(graph, strategy, oracle, bounds, 1.0)
        assert {n: int(m.sum()) for n, m in other.selection.keep.items()} != widths


@pytest.mark.parametrize("strategy", [OneShot(), RandomWidths()])
def test_controls_end_where_the_best_channels_cannot_meet_a_limit(strategy):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(32, 8)), rng.normal(size=(32, 50))
    options = {"max_macs": 326, "validation_data": samples, "strategy": strategy, "verbose": False}
    with pytest.raises(LimitError, match="cannot get below 416"):
        keras_pcp.search_widths(unequal(), **options)


def test_one_shot_rounds_widths_up_and_keeps_a_least_width():
    graph = graph_of(group("a", 20), group("b", 12), group("c", 8))
    oracle = Oracle(graph, {"a": 0.01, "b": 0.02, "c": 0.03})
    state = one_round(graph, OneShot(multiple_of=4, min_channels={"c": 8}), oracle, {"macs": 28.0}, 1.0, None)
    assert {n: int(m.sum()) for n, m in state.selection.keep.items()} == {"a": 12, "b": 8, "c": 8}
    with pytest.raises(LimitError, match="cannot get below 12"):
        OneShot(min_channels=4).init(Problem.of(graph, Limits(max_macs=10)))

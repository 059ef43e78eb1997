"""The graph of a pruned model, by renumbering, does for the pruned model what an analysed graph would do."""

import keras
import numpy as np
import pytest
from zoo import ZOO, assert_close, build, each, inputs_for, outputs_of, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.narrowing import narrowed

L = keras.layers


@pytest.mark.parametrize("name", each(sorted(ZOO)))
def test_a_second_selection_on_the_narrowed_graph_is_the_combined_one_on_the_whole_graph(name):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    first, x = random_selection(graph, 0), inputs_for(model)
    between = narrowed(graph, first)
    assert {g.name: g.num_channels for g in between} == {n: int(m.sum()) for n, m in first.keep.items()}
    second = random_selection(between, 1)
    pruned = keras_pcp.prune_model(model, graph, first)
    keras_pcp.shrink(pruned, between, second)
    once = keras_pcp.prune_model(model, graph, first.then(second))
    for a, b in zip(pruned.get_weights(), once.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert_close(outputs_of(pruned, x), outputs_of(once, x), 0)
    predicted, expected = keras_pcp.count_cost(between, second), keras_pcp.count_cost(graph, first.then(second))
    assert (predicted.macs, predicted.params, predicted.bytes) == (expected.macs, expected.params, expected.bytes)


def test_channels_and_positions_are_counted_anew():
    i = keras.Input((4, 4, 3))
    a, b = L.Conv2D(3, 1, name="a")(i), L.Conv2D(4, 1, name="b")(i)
    model = keras.Model(i, L.Conv2D(2, 1, name="c")(L.Concatenate()([a, b, a])))
    graph = keras_pcp.build_graph(model)
    small = narrowed(graph, keras_pcp.Selection({"a": np.array([1, 0, 1], bool), "b": np.array([0, 1, 1, 0], bool)}))
    (read_a,), (read_b,) = (small[n].slices_of("consume") for n in "ab")
    assert (read_a.channels.tolist(), read_a.positions.tolist()) == ([0, 1, 0, 1], [0, 1, 4, 5])
    assert (read_b.channels.tolist(), read_b.positions.tolist()) == ([0, 1], [2, 3])
    assert [e.size for e in small.weights[read_a.weight].shape] == [1, 1, 6, 2]


def test_nothing_removed_gives_the_same_graph_and_a_wrong_selection_is_refused():
    graph = keras_pcp.build_graph(build("residual"))
    assert narrowed(graph, keras_pcp.Selection()) is graph
    name = next(iter(graph.groups))
    nothing = keras_pcp.Selection({name: np.zeros(graph[name].num_channels, bool)})
    with pytest.raises(InvalidArgumentError, match="keep one"):
        narrowed(graph, nothing)

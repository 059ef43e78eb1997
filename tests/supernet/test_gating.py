"""Widths as tensors: a narrowed network computes what the pruned one computes."""

import keras
import numpy as np
import pytest
from zoo import INEXACT, ZOO, assert_close, build, each, inputs_for, outputs_of

import keras_pcp
from keras_pcp.graph.cost import cost_of
from keras_pcp.graph.program import program_of
from keras_pcp.supernet.tables import costs

EXACT = sorted(set(ZOO) - INEXACT)


def supernet_of(model, **options):
    return keras_pcp.StagewiseSupernet(model, 1, ratios=(0.25, 0.5, 0.75), **options)


def random_widths(supernet, seed):
    levels = supernet.plan.levels
    return levels[np.arange(len(levels)), np.random.default_rng(seed).integers(0, levels.shape[1], len(levels))]


def selection_of(supernet, widths):
    return supernet.plan.gating.selection(widths, keras.ops.convert_to_numpy(supernet.ranks))


@pytest.mark.parametrize("name", each(EXACT))
def test_a_narrowed_network_computes_what_the_pruned_one_computes(name):
    model = build(name)
    supernet, x, before = supernet_of(model), inputs_for(model), model.get_weights()
    for seed in (0, 1):
        widths = random_widths(supernet, seed)
        small = keras_pcp.prune_model(model, supernet.plan.graph, selection_of(supernet, widths))
        with supernet.narrowed(widths, supernet.ranks.value):
            found = outputs_of(model, x)
        assert_close(found, outputs_of(small, x))
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize("name", each(sorted(ZOO)))
def test_the_costs_of_the_stages_add_up(name):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    made = [
        c.operation.name
        for c in program_of(model).trace.calls
        if c.operation is not None and not isinstance(c.operation, keras.Model)
    ]
    nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    cuts = () if nested else made[len(made) // 3 :: len(made) // 3 + 1]
    supernet, limited = supernet_of(model, cut_after=cuts), ["params", "macs"]
    ranks = keras.ops.convert_to_numpy(supernet.ranks)
    for seed in (0, 1):
        widths = random_widths(supernet, seed)
        total = sum(
            costs(part, supernet.plan.gating, ranks, widths[None, list(part.groups)], limited)[0]
            for part in supernet.plan.parts
        )
        expected = cost_of(graph, selection_of(supernet, widths))
        np.testing.assert_allclose(total, [expected.params, expected.macs])


def test_the_first_channels_are_the_largest():
    model = build("plain_flatten")
    graph = keras_pcp.build_graph(model)
    scores = keras_pcp.score_channels(model, graph, "l1")
    supernet = supernet_of(model)
    kept = selection_of(supernet, supernet.plan.levels[:, 1])
    for name, mask in kept.keep.items():
        assert scores[name][mask].min() >= scores[name][~mask].max()


def test_the_tiny_net_leaves_no_axis_empty():
    for name in ("concat_added", "slicing", "channel_shuffle"):
        model = build(name)
        supernet = keras_pcp.StagewiseSupernet(model, 1, ratios=(0.01,))
        small = keras_pcp.prune_model(model, supernet.plan.graph, selection_of(supernet, supernet.plan.levels[:, 0]))
        assert all(0 not in w.shape for w in small.weights)
        assert small.count_params() < 0.5 * model.count_params()


def test_in_a_random_order_each_group_has_every_place_once():
    supernet = supernet_of(build("residual"), sampling="fair")
    gating, orders = supernet.plan.gating, []
    for _ in range(3):
        for drawn, ranks in supernet.draw()[1:]:
            widths = keras.ops.convert_to_numpy(drawn)
            assert ((widths >= 1) & (widths <= gating.sizes)).all()
            orders.append(keras.ops.convert_to_numpy(ranks))
            for start, size in zip(gating.starts, gating.sizes, strict=True):
                assert sorted(orders[-1][start : start + size]) == list(range(size))
    assert not all(np.array_equal(orders[0], order) for order in orders)

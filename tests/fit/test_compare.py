"""Attempts that are compared on parts of the samples."""

from contextlib import ExitStack

import keras
import numpy as np
import pytest
from runs import run_of
from small_fits import compiled, data

import keras_pcp
from keras_pcp.fit.compare import Comparison
from keras_pcp.fit.evaluator import Evaluator
from keras_pcp.fit.metric import Measuring
from keras_pcp.fit.observation import Moment
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.graph.weight_masks import consumer_masks
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.surgery.masks import with_zeros

L = keras.layers


def searches(model, **options):
    samples = options.pop("samples", 64)
    criterion = options.pop("criterion", "l1")
    return run_of(model, data(samples, 1), Progressive(**options), criterion, Measuring(samples=None))


def sequential():
    layers = [L.Conv2D(12, 3, name="first"), L.BatchNormalization(), L.ReLU(), L.Conv2D(8, 3), L.ReLU()]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, L.Flatten(), L.Dense(4, name="logits")])


@pytest.mark.parametrize("make", [None, sequential])
@pytest.mark.parametrize("eagerly", [False, True])
def test_comparing_on_all_parts_gives_what_evaluating_attempts_gives(eagerly, make):
    model = compiled(make and make(), run_eagerly=eagerly)
    model.fit(*data(), epochs=1, verbose=0)
    run = searches(model)
    keep = np.ones(12, bool)
    keep[[1, 4, 5]] = False
    name = next(iter(run.problem.graph.groups))
    attempt = keras_pcp.Selection({**run.kept.keep, name: keep})
    with ExitStack() as stack:
        run.seen.open(Moment(), run.kept, stack, fresh=False)
        before, after = run.seen.evaluate(run.kept), run.seen.evaluate(attempt)
        parts = [run.seen.compare({"it": attempt}, part) for part in run.seen.parts]
    metrics = [np.concatenate([p[0] for p in parts]), np.concatenate([p[1]["it"] for p in parts])]
    assert [len(m) * run.seen.samples.evaluator.chunk for m in metrics] == [64, 64]
    assert metrics[0].mean(axis=0) == pytest.approx([before.metric, before.loss], abs=1e-5)
    expected = [before.metric - after.metric, after.loss - before.loss]
    assert metrics[1].mean(axis=0) == pytest.approx(expected, abs=1e-5)


def test_macs_of_attempts_are_counted():
    model = compiled()
    graph = keras_pcp.build_graph(model)
    cost = count_cost(graph)
    evaluator = Evaluator(model, data(64, 1), Measuring(samples=None))
    comparison = Comparison(evaluator, graph)
    last = list(graph.groups)[-1]
    keep = np.arange(graph[last].num_channels) > 0
    masks = consumer_masks(graph, keras_pcp.Selection({last: keep}))
    comparison.compare({"last": with_zeros(model, masks)}, slice(0, 4))
    samples = 4 * evaluator.chunk
    assert comparison.macs == samples * (cost.macs + cost.layers["logits"].macs)

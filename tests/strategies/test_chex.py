"""CHEX against the pseudo-code of its paper, in slow loops."""

import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from tiny_fits import network, samples

import keras_pcp
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.statistics import Statistics
from keras_pcp.strategies import Chex
from keras_pcp.strategies.chex import least_sparsity, leverage, residual, widths_of

L = keras.layers


def problem_of(model, share=0.5):
    return Problem.of(keras_pcp.build_graph(model), Limits(max_macs=share))


def test_widths_come_from_one_ranking_of_all_scales():
    model = network()
    problem = problem_of(model)
    ranks = {"first": np.array([8.0, 7, 6, 5, 4, 3, 2, 1]), "second": np.arange(8) + 4.5}
    assert widths_of(problem, ranks, 0) == {"first": 8, "second": 8}
    assert widths_of(problem, ranks, 5) == {"first": 4, "second": 7}  # 1 2 3 4 4.5
    assert widths_of(problem, ranks, 16) == {"first": 1, "second": 1}
    sparsity = least_sparsity(problem, ranks)
    costs = {}
    for pruned in (sparsity - 1, sparsity):
        widths = widths_of(problem, ranks, pruned)
        costs[pruned] = 16 * 9 * widths["first"] + 4 * 9 * widths["first"] * widths["second"] + 3 * widths["second"]
    assert costs[sparsity] <= problem.bounds["macs"] < costs[sparsity - 1]


def test_leverage_scores_and_residuals_are_those_of_the_formulas():
    model = network()
    graph = keras_pcp.build_graph(model)
    statistics = Statistics(model, graph)
    kernel = model.get_layer("second").kernel.numpy().astype(float)
    columns = kernel.reshape(-1, 8)
    for k in (3, 5):
        _, vectors = np.linalg.eigh(columns.T @ columns)  # right singular vectors, smallest first
        expected = [math.sqrt(sum(vectors[j, -1 - r] ** 2 for r in range(k))) for j in range(8)]
        assert leverage({"second": k}, graph["second"], statistics) == pytest.approx(expected, abs=1e-6)
    keep = np.arange(8) < 3
    expected = []
    for j in range(8):
        fitted, *_ = np.linalg.lstsq(columns[:, keep], columns[:, j], rcond=None)
        expected.append(np.linalg.norm(columns[:, j] - columns[:, keep] @ fitted))
    found = residual({"second": keep}, graph["second"], statistics)
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.allclose(found[:3], 0, atol=1e-5)
    few = SimpleNamespace(name="few", num_channels=12, slices_of=lambda role, part=None: ())
    assert leverage({"few": 2}, few, SimpleNamespace(weights=[])).tolist() == [0] * 12  # more filters than numbers: L1


def test_channels_are_held_regrow_less_and_less_and_are_cut_at_the_end():
    model = network()
    x, y = samples()
    widths = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.get_layer("second").kernel.numpy()
            widths.append(int(kernel.any(axis=(0, 1, 3)).sum()))

    pruning = keras_pcp.Pruning(Chex(every=1, regrow=0.4), max_macs=0.5, begin=0.0, end=0.85)
    model.fit(x, y, batch_size=8, epochs=7, verbose=0, callbacks=[Look(), pruning])
    rounds = pruning.report.rounds
    assert [r.how for r in rounds] == ["hold"] * (len(rounds) - 1) + ["cut"]
    total = [sum(r.widths.values()) for r in rounds]
    expected = [0.4 * (1 + math.cos(math.pi * t / len(rounds))) / 2 for t in range(1, len(rounds) + 1)]
    grown = [int(16 * share) for share in expected]
    assert max(abs((a - total[-1]) - b) for a, b in zip(total, grown, strict=True)) <= 3  # S moves with the scales
    assert total[0] > total[-1]
    assert pruning.report.reached
    assert pruning.report.shrinks == [rounds[-1].step]
    assert model.get_layer("first").filters + model.get_layer("second").filters == total[-1]
    assert widths[: len(rounds)] == [r.widths["first"] for r in rounds]  # the readers of the first group

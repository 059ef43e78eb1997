"""LASSO and ThiNet, against scikit-learn and a slow loop."""

import keras
import numpy as np
import pytest
from by_hand import one_group
from sklearn.linear_model import Lasso, lars_path
from zoo import build, inputs_for

import keras_pcp
from keras_pcp.criteria.lasso import entry_points
from keras_pcp.graph.selection import Selection

L = keras.layers


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "attention_exact",
        "nested",
        "shared_layers",
        "unused_branch",
        "single_channel",
        "einsums",
        "channel_shuffle",
        "u_net",
        "slicing",
        "stacked",
        "squeeze_excite",
    ],
)
def test_whatever_reads_a_group_its_channels_are_scored(name):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    data = inputs_for(model, 4), np.zeros(4)
    for criterion in ("lasso", "thinet"):
        scores = keras_pcp.score_channels(model, graph, criterion, data=data)
        assert all(s.max() > 0 for s in scores.values()) or name == "unused_branch"


def regression(seed):
    """Correlated regressors and something to explain, often with regressors that leave again."""
    rng = np.random.default_rng(seed)
    points, channels = int(rng.integers(20, 60)), int(rng.integers(2, 13))
    x = rng.normal(size=(points, channels)) @ rng.normal(size=(channels, channels))
    return x, x.sum(axis=1) + rng.normal(size=points) * (seed % 3)


@pytest.mark.parametrize("seed", range(20))
def test_the_path_of_lasso_is_that_of_scikit_learn(seed):
    x, y = regression(seed)
    lambdas, _, betas = lars_path(x, y, method="lasso")
    # A coefficient that is not 0 at the end of a piece of the path is not 0 from its beginning on.
    slow = [max((a for a, b in zip(lambdas, row[1:], strict=False) if b != 0), default=0) for row in betas]
    np.testing.assert_allclose(entry_points(x.T @ x, x.T @ y), len(y) * np.array(slow), rtol=1e-6)


def test_the_best_scores_are_the_channels_that_lasso_keeps():
    checked = 0
    for seed in range(12):
        x, y = regression(seed)
        entry = np.sort(entry_points(x.T @ x, x.T @ y))[::-1]
        scores = entry_points(x.T @ x, x.T @ y)
        if len(lars_path(x, y, method="lasso")[0]) != len(scores) + 1:
            continue  # one left again: what LASSO keeps is not nested
        for n in range(1, len(scores)):
            between = (entry[n - 1] * entry[n]) ** 0.5
            fit = Lasso(alpha=between / len(y), fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x, y)
            assert np.array_equal(fit.coef_ != 0, scores > between)
            checked += 1
    assert checked > 20


def test_a_combination_of_other_channels_never_comes_in():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    x = np.concatenate([x, x[:, :1], x[:, 1:2] * 0.5 + x[:, 2:3] * 0.5, np.zeros((40, 1))], axis=1)
    scores = entry_points(x.T @ x, x.T @ x.sum(axis=1))
    assert np.isfinite(scores).all()
    assert np.count_nonzero(scores) == 4
    assert scores[6] == 0


@pytest.mark.parametrize("readers", [1, 2])
def test_lasso_scores_follow_the_formula(readers):
    model, graph, data, added = one_group(6, readers)
    found = keras_pcp.score_channels(model, graph, "lasso", data=data)["hidden"]
    y = added.sum(axis=0)
    # (1 / 2 n) ||y - x b||^2 + alpha |b| of scikit-learn, with alpha = lambda ||y||^2 / n
    for share in (0.3, 0.1, 0.03, 0.01):
        fit = Lasso(share * (y @ y) / len(y), fit_intercept=False, tol=1e-10, max_iter=100_000).fit(added.T, y)
        assert set(np.flatnonzero(fit.coef_)) <= set(np.flatnonzero(found > share))
    np.testing.assert_allclose(found.max(), np.abs(added @ y).max() / (y @ y), rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_thinet_removes_what_adds_least_each_time(seed):
    model, graph, data, added = one_group(7, readers=2, seed=seed)
    found = keras_pcp.score_channels(model, graph, "thinet", data=data)["hidden"]
    removed = [int(c) for c in range(7) if not added[c].any()]
    expected = dict.fromkeys(removed, 0.0)  # those add nothing
    while len(removed) < 7:
        error = {c: sum(added[[*removed, c]].sum(axis=0) ** 2) for c in range(7) if c not in removed}
        removed.append(min(error, key=error.get))
        expected[removed[-1]] = len(removed) / 7
    np.testing.assert_allclose(found, [expected[c] for c in range(7)])


def test_channels_that_are_masked_or_dead_come_last():
    model, graph, data, _ = one_group(6)
    hidden = model.get_layer("hidden")
    hidden.bias.assign(np.where(np.arange(6) == 4, -1e3, 1e3))  # channel 4 is never active, the others are always
    with keras_pcp.masked(model, graph, Selection({"hidden": np.arange(6) != 1})):
        for criterion in ("lasso", "thinet"):
            scores = keras_pcp.score_channels(model, graph, criterion, data=data)["hidden"]
            assert np.argsort(scores)[:2].tolist() == [1, 4]
            assert scores[1] < scores[4]


def test_a_group_that_no_kernel_reads_gets_scores():
    i = keras.Input((4,))
    x = L.Dense(3, name="x")(i)
    model = keras.Model(i, [x, L.Dense(4, name="y", kernel_initializer="zeros")(i)])
    both = keras.Model(i, L.Dense(1, kernel_initializer="zeros")(model(i)[1]))
    graph = keras_pcp.build_graph(both)
    for criterion in ("lasso", "thinet"):
        scores = keras_pcp.score_channels(both, graph, criterion, data=(np.ones((2, 4)), np.ones(2)))
        assert scores["y"].tolist() == [0] * 4

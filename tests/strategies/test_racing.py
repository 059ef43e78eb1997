"""Attempts race: the worse ones drop out after some of the samples."""

from dataclasses import replace

import numpy as np
import pytest

from keras_pcp.strategies.racing import race


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


def racing(truth, asked):
    """Returns a race among attempts with these drops, and notes which are measured."""

    def compare(names, part):
        asked.extend(names)
        return {n: np.stack([np.full(8, truth[n]), np.zeros(8)], axis=1) for n in names}

    def again(known, candidates=None):
        asked.clear()
        candidates = candidates or dict.fromkeys(truth, (0,))
        return race(candidates, known, compare, [slice(0, 8), slice(8, 16)], 2, 3.0)

    return again


def test_an_attempt_far_from_the_best_rests_but_not_for_ever():
    truth, asked = {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.9}, []
    again = racing(truth, asked)
    found = again({})
    assert set(asked) == set(truth)
    shares = []
    for _ in range(5):
        found = again(found)
        shares.append(found["d"].share > 0)
        assert ("d" in asked) == shares[-1]
        assert {"a", "b"} <= set(asked)
        assert found["d"].mean() == pytest.approx((0.9, 0.0))
    assert shares == [False, False, True, False, False]


def test_an_attempt_that_rests_is_measured_if_it_is_among_the_best_by_then():
    truth, asked = {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.3}, []
    again = racing(truth, asked)
    found = again({})
    truth |= {"a": 0.8, "b": 0.7, "c": 0.6, "d": 0.5}
    found = again(found)
    assert {n: m.mean()[0] for n, m in found.items()} == pytest.approx(truth)
    assert all(m.rests == 0 for m in found.values())


def test_one_that_wakes_and_is_worse_than_it_was_wakes_the_next():
    truth, asked = {"a": 0.0, "b": 0.1, "c": 0.3, "d": 0.82, "e": 0.9}, []
    again = racing(truth, asked)
    found = again({})
    truth |= {"a": 0.8, "b": 0.85, "c": 0.95, "d": 0.97, "e": 0.99}
    found = again(found)
    best = sorted(found, key=lambda n: found[n].value())[:2]
    assert best == ["a", "b"]
    assert all(found[n].share > 0 for n in best)


def test_an_attempt_is_unclear_as_long_as_one_that_rests_is_near():
    """With as many awake as are wanted, they would be clear, but for those that rest."""
    draws = np.random.default_rng(0).normal(0, 0.2, (2, 64))
    draws -= draws.mean(axis=1, keepdims=True)
    truth = {"a": np.zeros(64), "b": 0.05 + draws[0], "c": np.full(64, 0.06)}
    parts = [slice(i, i + 8) for i in range(0, 64, 8)]

    def compare(names, part):
        return {n: np.stack([truth[n][part], np.zeros(8)], axis=1) for n in names}

    candidates = {"a": (1,), "b": (2,), "c": (3,)}
    found = race(candidates, {}, compare, parts, 2, 3.0)
    truth["b"] = 0.05 + draws[1]
    found = race(candidates, found, compare, parts, 2, 3.0)
    assert found["c"].share == 0
    assert found["b"].share == 1


def test_an_attempt_that_removes_other_channels_than_before_does_not_rest():
    truth, asked = {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.9}, []
    again = racing(truth, asked)
    found = again(again({}), {"a": (0,), "b": (0,), "c": (0,), "d": (1,)})
    assert "d" in asked
    assert found["d"].removed == (1,)

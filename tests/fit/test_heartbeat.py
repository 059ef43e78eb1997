"""What a user sees while pruning takes long."""

import sys
import time

import keras
import numpy as np
import pytest

import keras_pcp
from keras_pcp.fit.heartbeat import Heartbeat


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Heartbeat, "first", 0.1)
    monkeypatch.setattr(Heartbeat, "every", 0.1)


def test_long_work_is_shown_and_short_work_is_not(quick, capsys):
    texts = iter(["one", "two", "three", "four", "five"])
    with Heartbeat(True).during(lambda: next(texts)):
        time.sleep(0.35)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["pruning: one", "pruning: two"]
    with Heartbeat(True).during(lambda: next(texts)):
        pass
    with Heartbeat(False).during(lambda: next(texts)):
        time.sleep(0.2)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_it_is_one_line_that_goes_when_the_work_is_done(quick, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with Heartbeat(True).during(lambda: "at work"):
        time.sleep(0.25)
    out = capsys.readouterr().out
    assert "\n" not in out
    assert out.endswith("\r")
    assert out.split("\r")[-2].strip() == ""


def test_it_ends_with_an_error(quick, capsys):
    with pytest.raises(KeyError), Heartbeat(True).during(lambda: "at work"):
        raise KeyError
    capsys.readouterr()
    time.sleep(0.25)
    assert capsys.readouterr().out == ""


class Slow(keras_pcp.strategies.OneShot):
    """Takes long to decide."""

    def update(self, problem, state, seen):
        time.sleep(0.4)
        return super().update(problem, state, seen)


@pytest.mark.parametrize("verbose", [0, 2])
def test_a_fit_says_what_it_will_do_and_that_it_is_at_work(verbose, quick, capsys):
    x, y = np.random.default_rng(0).random((64, 8)), np.arange(64) % 2
    i = keras.Input((8,))
    model = keras.Model(i, keras.layers.Dense(1)(keras.layers.Dense(16, activation="relu")(i)))
    model.compile("sgd", "mse")
    pruning = keras_pcp.Pruning(Slow(), max_params=0.5, validation_data=(x, y))
    model.fit(x, y, batch_size=8, epochs=2, verbose=verbose, callbacks=[pruning])
    out = capsys.readouterr().out
    assert ("pruning at 2 moments from step 1 to 2 of 16" in out) == bool(verbose)
    assert ("pruning: round 1, 0% of the way, 0 s" in out) == bool(verbose)
    assert bool(out) == bool(verbose)

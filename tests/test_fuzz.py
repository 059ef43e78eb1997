"""Random calls of the public functions: `python tests/fuzz_calls.py --count 10000` makes more of them."""

import random

import fuzz_calls
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import keras_pcp


@pytest.fixture(scope="module")
def world():
    return fuzz_calls.World()


# Not shrunk: a call depends on all that was drawn before, and one is short as it is.
def calls(count):
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@calls(40)
@given(seed=st.integers(0, 10**9))
def test_a_random_call_returns_or_is_refused_by_a_documented_error_and_leaves_the_model_whole(world, seed):
    outcome = fuzz_calls.one_call(random.Random(seed), world, whole=seed % 20 == 0)
    assert not outcome.fault, outcome


@pytest.mark.slow
@calls(200)
@given(seed=st.integers(0, 10**9))
def test_more_random_calls_return_or_are_refused_and_leave_the_model_whole(world, seed):
    outcome = fuzz_calls.one_call(random.Random(seed), world, whole=seed % 20 == 0)
    assert not outcome.fault, outcome


def test_the_fuzzer_sees_a_weight_a_slot_a_metric_and_a_config_that_change(world):
    subject = world.subjects["dense"]
    model = subject.model
    for variable in (model.weights[0], model.optimizer.variables[-1], model.metrics_variables[0]):
        value = variable.numpy()
        variable.assign(np.nextafter(value, np.asarray(np.inf, value.dtype)))
        assert world.changed() == ["dense"]
        variable.assign(value)
        assert world.changed() == []
    model.get_layer("hidden").units += 1
    assert world.changed() == ["dense"]
    model.get_layer("hidden").units -= 1
    assert world.changed() == []


def test_the_fuzzer_reports_an_undocumented_error_and_a_changed_model(world, monkeypatch):
    def failing(draw):
        [1][2]

    def changing(draw):
        draw.subject.model.weights[0].assign_add(keras.ops.ones_like(draw.subject.model.weights[0]))
        raise keras_pcp.PruningError("documented, but too late")

    monkeypatch.setattr(fuzz_calls, "CALLS", {failing: 1})
    assert "IndexError" in fuzz_calls.one_call(random.Random(0), world).fault
    monkeypatch.setattr(fuzz_calls, "CALLS", {changing: 1})
    assert "changed" in fuzz_calls.one_call(random.Random(0), world).fault
    assert world.changed() == []  # made again

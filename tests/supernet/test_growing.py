"""Tables that grow towards the best sub-nets."""

import itertools

import keras
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, PairwiseKernel

import keras_pcp
from keras_pcp.graph.cost import cost_of
from keras_pcp.supernet.dynamic_programming import pareto_front
from keras_pcp.supernet.estimating import COMMON, FLOOR, LINEAR, NEAR, NOISE, REACH, STEPS, Estimates
from keras_pcp.supernet.growing import StageTables
from keras_pcp.supernet.tables import costs

L = keras.layers
FULL = 2 * 8 * 8 * 12 * 9 * 12


class Made:
    """Errors that are given by a formula; counts what was asked for."""

    def __init__(self, supernet):
        self.plan, self.asked = supernet.plan, []
        self.weights = np.random.default_rng(0).uniform(0.2, 2, len(supernet.plan.levels))

    def of(self, stage, levels):
        self.asked.append((stage, *levels.tolist()))
        groups = list(self.plan.parts[stage].groups)
        missing = 1 - levels / (self.plan.levels.shape[1] - 1)
        return float((self.weights[groups] * missing**2).sum() + missing.prod())

    def of_all(self, levels):
        return np.array([self.of(i, levels[list(part.groups)]) for i, part in enumerate(self.plan.parts)])


def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for number, strides in enumerate((1, 1, 1, 1, 2, 1)):
        x = L.Conv2D(12, 3, strides, padding="same", activation="relu", name=f"conv_{number}")(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def supernet():
    """A super-net of two stages with four and three groups, one of which reaches over the cut."""
    return keras_pcp.StagewiseSupernet(network(), cut_after=["conv_3"], ratios=(0.25, 0.5, 0.75))


def best_of(supernet, most, bound, seed=0, refined=True):
    errors = Made(supernet)
    tables = StageTables(supernet, errors, ["macs"], most, seed)
    front = tables.refine([bound]) if refined else pareto_front(tables.scored())
    best = front.best([bound])
    return errors, tables, front.errors[best], tables.levels(tables.scored(), front.options[best])


def test_a_stage_is_asked_for_each_option_once_and_no_more_than_allowed(supernet):
    for most in (3, 20, 200):
        errors, tables, _, _ = best_of(supernet, most, FULL / 3)
        assert len(errors.asked) == len(set(errors.asked)) == sum(len(t.errors) for t in tables.scored())
        assert all(len(t.errors) <= most for t in tables.scored())
        if most < 200:
            assert len(tables.scored()[0].errors) == most
    assert len(tables.scored()[0].errors) < 60  # of 256: no other one was likely to be better


def test_a_limit_that_does_not_bind_changes_little():
    supernet = keras_pcp.StagewiseSupernet(network(), cut_after=["conv_3"], ratios=(0.25, 0.5, 0.75))
    full, found = cost_of(supernet.plan.graph), []
    for limited, bounds in ((["macs"], [0.3 * full.macs]), (["macs", "bytes"], [0.3 * full.macs, full.bytes])):
        front = StageTables(supernet, Made(supernet), limited, 80).refine(bounds)
        found.append(front.errors[front.best(bounds)])
    assert found[1] <= 1.05 * found[0]


def test_a_stage_may_have_no_groups():
    x = keras.Input((8,))
    y = L.Dense(3, name="logits")(L.Dense(16, activation="relu")(x))
    supernet = keras_pcp.StagewiseSupernet(keras.Model(x, L.Softmax()(y)), cut_after=["logits"])
    assert [len(part.groups) for part in supernet.plan.parts] == [1, 0]
    found = supernet.search(max_macs=0.5, validation_data=np.random.default_rng(0).random((32, 8)), verbose=False)
    assert found.cost["macs"] <= 0.5 * 16 * 11


def test_the_best_is_what_its_levels_say(supernet):
    errors, _, error, levels = best_of(supernet, 60, FULL / 3)
    parts, gating = supernet.plan.parts, supernet.plan.gating
    assert error == pytest.approx(sum(errors.of(i, levels[list(part.groups)]) for i, part in enumerate(parts)))
    widths = supernet.plan.levels[np.arange(len(levels)), levels]
    ranks = keras.ops.convert_to_numpy(supernet.ranks)
    assert cost_of(supernet.plan.graph, gating.selection(widths, ranks)).macs <= FULL / 3


def estimates_of(levels, known, num_levels):
    """Enters options, some of them later than others, and scores those that are known, {place: error}."""
    estimates, half = Estimates(num_levels, levels.shape[1]), len(levels) // 2
    estimates.enter(levels[:half])
    for place, error in known.items():
        if place < half:
            estimates.score(place, error)
    estimates.errors()
    estimates.enter(levels[half:])
    for place, error in known.items():
        if place >= half:
            estimates.score(place, error)
    return estimates


def test_estimates_are_those_of_scikit_learn():
    """The same covariances in a Gaussian process that is fitted at once."""
    rng, num_levels = np.random.default_rng(0), 5
    levels = np.array(list(itertools.product(range(num_levels), repeat=3)))
    known = {int(place): float(rng.random()) for place in rng.choice(len(levels), 30, replace=False)}

    def covariances(a, b):
        lacks_a, lacks_b = 1 - a / 4, 1 - b / 4
        steps = sum((a[:, None] < k) & (b < k) for k in range(1, 5)).sum(-1)
        near = Matern(REACH, nu=2.5)(lacks_a, lacks_b)
        return COMMON + LINEAR * lacks_a @ lacks_b.T + STEPS * steps + NEAR * near

    places, errors = list(known), np.array(list(known.values()))
    floor = FLOOR * np.median(errors) + 1e-6
    target = np.log(errors + floor)
    kernel = PairwiseKernel(metric=lambda a, b, **_: covariances(a[None], b[None])[0, 0])
    process = GaussianProcessRegressor(kernel, alpha=NOISE, optimizer=None)
    process.fit(levels[places], (target - target.mean()) / target.std())
    mean, deviation = process.predict(levels, return_std=True)
    found = estimates_of(levels, known, num_levels)
    for optimism in (0.0, 1.5):
        expected = np.exp(target.mean() + target.std() * (mean - optimism * deviation)) - floor
        np.testing.assert_allclose(found.errors(optimism), np.maximum(expected, 0), rtol=1e-4, atol=1e-6)


def test_an_option_is_sure_once_it_is_known_and_an_infinite_error_tells_nothing():
    levels = np.array(list(itertools.product(range(4), repeat=2)))
    known = {0: 2.0, 5: 1.0, 10: 0.5, 15: 0.0}
    estimates = estimates_of(levels, known, 4)
    apart = estimates.errors() - estimates.errors(optimism=1.0)
    assert apart[[0, 5, 10]].max() < 0.3 < apart[[3, 12]].min()
    estimates.score(3, np.inf)
    np.testing.assert_array_equal(estimates.errors(), estimates_of(levels, known, 4).errors())


def test_nothing_is_estimated_before_anything_is_known():
    assert estimates_of(np.array([[0, 1], [1, 1]]), {}, 3).errors(2.0).tolist() == [0.0, 0.0]


def test_costs_of_many_options_are_those_of_each(supernet):
    ranks, gating = keras.ops.convert_to_numpy(supernet.ranks), supernet.plan.gating
    names, rng = ["bytes", "macs", "params"], np.random.default_rng(0)
    for part in supernet.plan.parts:
        widths = np.tile(gating.sizes, (20, 1))
        groups = list(part.groups)
        widths[:, groups] = rng.integers(1, gating.sizes[groups] + 1, (20, len(groups)))
        each = [cost_of(part.graph, gating.selection(row, ranks)) for row in widths]
        expected = [[getattr(cost, name) for name in names] for cost in each]
        np.testing.assert_array_equal(costs(part, gating, ranks, widths[:, groups], names), expected)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.6])
def test_with_estimates_the_best_is_nearly_that_of_all_options(supernet, share):
    full = cost_of(supernet.plan.graph).macs
    *_, least, _ = best_of(supernet, 10**6, share * full)
    given = supernet.plan.parts
    errors, num_levels = Made(supernet), supernet.plan.levels.shape[1]
    every = []
    for levels in itertools.product(range(num_levels), repeat=len(supernet.plan.levels)):
        row = np.array(levels)
        widths = supernet.plan.levels[np.arange(len(row)), row]
        selection = supernet.plan.gating.selection(widths, keras.ops.convert_to_numpy(supernet.ranks))
        if cost_of(supernet.plan.graph, selection).macs <= share * full:
            every.append(sum(errors.of(i, row[list(part.groups)]) for i, part in enumerate(given)))
    assert least == pytest.approx(min(every))
    for seed in range(3):
        *_, refined, _ = best_of(supernet, 80, share * full, seed)
        *_, drawn, _ = best_of(supernet, 80, share * full, seed, refined=False)
        assert min(every) - 1e-9 <= refined <= drawn + 1e-9
        assert refined <= 1.1 * min(every)

"""Tables that grow towards the best sub-nets."""

import itertools

import keras
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, PairwiseKernel

import keras_pcp
from keras_pcp.errors import NotFiniteError
from keras_pcp.graph.cost import cost_of
from keras_pcp.supernet import growing
from keras_pcp.supernet.dynamic_programming import pareto_front
from keras_pcp.supernet.estimating import COMMON, FLOOR, LINEAR, NEAR, NOISE, REACH, STEPS, Estimates
from keras_pcp.supernet.growing import StageTables
from keras_pcp.supernet.scoring import StageErrors
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


def estimates_of(levels, known, widths):
    """Enters options, some of them later than others, and scores those that are known, {place: error}."""
    estimates, half = Estimates(widths), len(levels) // 2
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


SQUARE = np.array(list(itertools.product(range(4), repeat=2)))
FOUR = {0: 2.0, 5: 1.0, 10: 0.5, 15: 0.0}


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_estimates_are_those_of_scikit_learn(shift):
    """The same covariances in a Gaussian process that is fitted at once; with errors that may be negative, too."""
    rng, widths = np.random.default_rng(0), np.array([[1, 2, 3, 6, 8], [4, 5, 6, 7, 8], [1, 1, 1, 2, 2]])
    levels = np.array(list(itertools.product(range(5), range(5), (0, 3))))  # the third group has two widths
    known = {int(place): float(rng.random() + shift) for place in rng.choice(len(levels), 20, replace=False)}

    def covariances(a, b):
        a, b = widths[[0, 1, 2], a.astype(int)], widths[[0, 1, 2], b.astype(int)]
        full, least = widths[:, -1], widths[:, 0]
        lacks_a, lacks_b = ((full - a) / (full - least))[None], ((full - b) / (full - least))[None]
        steps = sum(((a < w) & (b < w)).sum() for w in widths.T)
        return COMMON + LINEAR * lacks_a @ lacks_b.T + STEPS * steps + NEAR * Matern(REACH, nu=2.5)(lacks_a, lacks_b)

    places, errors = list(known), np.array(list(known.values()))
    least = min(errors.min(), 0)
    floor = FLOOR * np.median((errors - least)[errors > least])
    target = np.log(errors - least + floor)
    kernel = PairwiseKernel(metric=lambda a, b, **_: covariances(a, b)[0, 0])
    process = GaussianProcessRegressor(kernel, alpha=NOISE, optimizer=None)
    process.fit(levels[places], (target - target.mean()) / target.std())
    mean, deviation = process.predict(levels, return_std=True)
    found = estimates_of(levels, known, widths)
    for optimism in (0.0, 1.5):
        expected = np.exp(target.mean() + target.std() * (mean - optimism * deviation)) - floor + least
        np.testing.assert_allclose(found.errors(optimism), expected, rtol=1e-4, atol=1e-6)


def test_what_is_known_is_sure_and_what_is_far_from_it_is_not():
    estimates = estimates_of(SQUARE, FOUR, np.array([[1, 2, 3, 4]] * 2))
    apart = estimates.errors() - estimates.errors(optimism=1.0)
    assert (apart[[0, 5, 10, 15]] < 0.2 * (estimates.errors()[[0, 5, 10, 15]] + 0.1)).all()
    assert (apart[[3, 12]] > 0.3 * estimates.errors()[[3, 12]]).all()


def test_an_infinite_error_counts_as_twice_the_largest():
    widths = np.array([[1, 2, 3, 4]] * 2)
    for shift in (0.0, -3.0):  # some losses are negative
        four = {place: error + shift for place, error in FOUR.items()}
        found = estimates_of(SQUARE, four | {3: np.inf}, widths).errors()
        np.testing.assert_array_equal(found, estimates_of(SQUARE, four | {3: 4.0 + shift}, widths).errors())
    assert estimates_of(SQUARE, {3: np.inf}, widths).errors().tolist() == [0.0] * 16


@pytest.mark.parametrize("known", [{}, {0: 0.0}, {0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0}])
def test_estimates_are_numbers_whatever_is_known(known):
    assert np.isfinite(estimates_of(np.array([[0, 1], [1, 1]]), known, np.array([[1, 2], [1, 1]])).errors(2.0)).all()
    one_width = estimates_of(np.zeros((2, 1), int), known, np.array([[3]]))
    assert np.isfinite(one_width.errors(2.0)).all()


def test_a_stage_can_have_nothing_but_shared_groups():
    """Then there are fewer options to estimate than may be scored."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    branches = [L.Conv2D(10, 1, name=f"branch_{number}")(inputs) for number in range(5)]
    x = L.GlobalAveragePooling2D()(L.ReLU()(L.BatchNormalization()(L.Concatenate(name="joined")(branches))))
    supernet = keras_pcp.StagewiseSupernet(keras.Model(inputs, L.Dense(3)(x)), cut_after=["joined"])
    *_, error, levels = best_of(supernet, 150, 0.4 * cost_of(supernet.plan.graph).macs)
    made, costs_of = Made(supernet), supernet.plan.graph
    assert error == made.of_all(levels).sum()
    even = [np.full(len(levels), level) for level in range(supernet.plan.levels.shape[1])]
    ranks = keras.ops.convert_to_numpy(supernet.ranks)
    widths = [supernet.plan.levels[np.arange(len(row)), row] for row in even]
    macs = [cost_of(costs_of, supernet.plan.gating.selection(row, ranks)).macs for row in widths]
    assert error < min(made.of_all(row).sum() for row, m in zip(even, macs, strict=True) if m <= 0.4 * max(macs))


@pytest.mark.parametrize("limited", [["macs"], ["macs", "params"], ["macs", "params", "bytes"]])
def test_infinite_errors_are_never_chosen(supernet, limited):
    errors, full = Made(supernet), cost_of(supernet.plan.graph)
    finite, bounds = errors.of, [0.5 * getattr(full, name) for name in limited]
    errors.of = lambda stage, levels: finite(stage, levels) if levels.min() > 0 else np.inf
    front = StageTables(supernet, errors, limited, 40).refine(bounds)
    assert np.isfinite(front.errors).all()
    assert front.best(bounds) is not None
    errors.of = lambda stage, levels: np.inf
    nothing = StageTables(supernet, errors, limited, 40).refine(bounds)
    assert nothing.options.shape == (0, 2)
    assert nothing.best(bounds) is None


@pytest.mark.parametrize("seed", range(3))
def test_what_was_not_drawn_is_found_next_to_what_was(supernet, monkeypatch, seed):
    full = cost_of(supernet.plan.graph).macs
    *_, least, _ = best_of(supernet, 10**6, 0.35 * full)
    monkeypatch.setattr(growing, "POOL", 10)  # of 256 options
    *_, found, _ = best_of(supernet, 60, 0.35 * full, seed)
    monkeypatch.setattr(growing, "neighbours", lambda levels, first: np.empty((0, len(levels)), int))
    *_, without, _ = best_of(supernet, 60, 0.35 * full, seed)
    assert least - 1e-9 <= found <= 1.1 * least
    assert found < without


@pytest.mark.parametrize("method", ["dynamic", "evolution"])
def test_a_search_that_finds_only_infinite_errors_says_so(supernet, monkeypatch, method):
    monkeypatch.setattr(StageErrors, "_error", lambda *_: np.inf)
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    with pytest.raises(NotFiniteError, match="within the limits that were scored have NaN"):
        supernet.search(max_macs=0.5, validation_data=x, method=method, evaluations=60, verbose=False)


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

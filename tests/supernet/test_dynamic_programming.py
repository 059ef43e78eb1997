"""Exact search over stages, against trying everything; and evolutionary search."""

import itertools
import time

import numpy as np
import pytest

from keras_pcp.supernet.dynamic_programming import Table, pareto_front
from keras_pcp.supernet.evolution import evolve
from keras_pcp.supernet.tables import StagePart, count_options, distinct_levels, options

SHAPES = {
    "apart": ((0, 1), (2,), (3, 4)),
    "neighbours": ((0, 1), (1, 2), (2, 3)),
    "far": ((0, 1), (2,), (0, 3)),
    "one for all": ((0, 1), (0, 2), (0, 3), (0,)),
    "a stage without groups": ((0, 1), (), (1, 2)),
}


def all_distinct(groups, num_levels):
    return np.tile(np.arange(num_levels), (groups, 1))


def random_tables(groups_of_stages, num_levels=3, limits=1, seed=0, drop=0):
    rng, found = np.random.default_rng(seed), []
    for groups in groups_of_stages:
        levels = np.array(list(itertools.product(range(num_levels), repeat=len(groups))), int)
        levels = levels.reshape(num_levels ** len(groups), len(groups))
        levels = levels[drop:] if len(levels) > drop else levels
        # Whole numbers, so that there are ties.
        costs = rng.integers(1, 6, (len(levels), limits)) + levels.sum(1, keepdims=True)
        found.append(Table(groups, levels, costs.astype(float), rng.integers(0, 9, len(levels)).astype(float)))
    return found


def tried(tables):
    """Yields (options, cost, error) of every sub-net."""
    for chosen in itertools.product(*(range(len(t.errors)) for t in tables)):
        given = {}
        for table, option in zip(tables, chosen, strict=True):
            for group, level in zip(table.groups, table.levels[option], strict=True):
                given.setdefault(group, set()).add(int(level))
        if all(len(levels) == 1 for levels in given.values()):
            each = list(zip(tables, chosen, strict=True))
            yield chosen, sum(t.costs[o] for t, o in each), sum(t.errors[o] for t, o in each)


@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("drop", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_front_is_that_of_all_sub_nets(shape, drop, limits):
    for seed in range(5):
        tables = random_tables(SHAPES[shape], limits=limits, seed=seed, drop=drop)
        front, every = pareto_front(tables), list(tried(tables))
        assert every
        points = {(*cost, error) for _, cost, error in every}
        best = {p for p in points if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)}
        assert {(*c, e) for c, e in zip(front.costs, front.errors, strict=True)} == best
        known = {chosen: (*cost, error) for chosen, cost, error in every}
        for chosen, cost, error in zip(front.options, front.costs, front.errors, strict=True):
            assert known[tuple(chosen)] == (*cost, error)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_best_under_a_limit_is_that_of_all_sub_nets(shape):
    tables = random_tables(SHAPES[shape], seed=7)
    front, every = pareto_front(tables), list(tried(tables))
    for bound in np.linspace(min(c[0] for _, c, _ in every), max(c[0] for _, c, _ in every), 7):
        expected = min(error for _, cost, error in every if cost[0] <= bound)
        assert front.errors[front.best([bound])] == expected
    assert front.best([0.0]) is None


def test_the_front_is_at_least_as_good_as_what_evolution_finds():
    tables = random_tables(((0, 1, 2), (2, 3, 4), (4, 5, 6)), num_levels=5, seed=3)
    by_levels = [{tuple(row): i for i, row in enumerate(t.levels.tolist())} for t in tables]

    def of(levels):
        for table, known in zip(tables, by_levels, strict=True):
            yield table, known[tuple(levels[list(table.groups)].tolist())]

    bound = 30.0
    levels, error = evolve(
        lambda v: sum(t.errors[o] for t, o in of(v)),
        lambda v: sum(t.costs[o, 0] for t, o in of(v)) <= bound,
        5,
        7,
        evaluations=500,
    )
    front = pareto_front(tables)
    assert sum(t.errors[o] for t, o in of(levels)) == error
    assert front.errors[front.best([bound])] <= error


def test_evolution_keeps_the_limit_and_counts_evaluations():
    asked = []
    levels, error = evolve(
        lambda v: asked.append(tuple(v)) or float(-v.sum()), lambda v: v.sum() <= 6, 4, 5, evaluations=60, population=10
    )
    assert len(asked) == len(set(asked)) == 60
    assert max(map(sum, asked)) == levels.sum() == -error == 6


def test_a_small_stage_has_all_options_and_a_large_one_those_that_fit_the_others():
    rng = np.random.default_rng(0)
    assert len(options(StagePart((0, 1), frozenset(), None), [0], all_distinct(2, 3), 9, rng)) == 9
    assert options(StagePart((), frozenset(), None), [0], all_distinct(0, 3), 9, rng).shape == (1, 0)
    parts = [StagePart((0, 1, 2, 3), frozenset(), None), StagePart((3, 4, 5, 6), frozenset(), None)]
    first, second = (options(part, [3], all_distinct(4, 10), 100, rng) for part in parts)
    assert set(first[:, 3]) == set(second[:, 0]) == set(range(10))
    assert 50 < len(first) <= 100
    for level in range(10):  # the narrowest with each level of the shared group
        assert (first == [0, 0, 0, level]).all(axis=1).any()


def test_many_shared_groups_get_the_same_level():
    part = StagePart(tuple(range(8)), frozenset(), None)
    found = options(part, [0, 1, 2, 3, 4, 5], all_distinct(8, 10), 200, np.random.default_rng(0))
    assert all(len(set(row[:6])) == 1 for row in found.tolist())


def test_levels_of_the_same_width_are_one_option():
    first = distinct_levels(np.array([[1, 1, 1, 2], [1, 2, 3, 4]]))
    assert count_options(first) == 8
    found = options(StagePart((0, 1), frozenset(), None), [], first, 8, np.random.default_rng(0))
    assert {tuple(row) for row in found.tolist()} == {(a, b) for a in (0, 3) for b in range(4)}
    drawn = options(StagePart((0, 1), frozenset(), None), [], first, 7, np.random.default_rng(0))
    assert set(drawn[:, 0]) <= {0, 3}
    assert len(drawn) == len({tuple(row) for row in drawn.tolist()})


def test_errors_that_are_infinite_are_left_out():
    table = Table((0,), np.arange(4)[:, None], np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([9, np.inf, 2, 0]))
    front = pareto_front([table])
    assert front.errors.tolist() == [9, 2, 0]


def test_a_front_of_two_limits_takes_little_time():
    rng = np.random.default_rng(0)
    tables = []
    for stage in range(3):
        levels = rng.integers(0, 10, (500, 3))
        costs = (levels[:, :1] + 1.0) * (levels[:, 1:] + 1) + rng.random((500, 2))
        tables.append(
            Table(tuple(range(3 * stage, 3 * stage + 3)), levels, costs, (9 - levels).sum(1) + rng.random(500))
        )
    began = time.perf_counter()
    front = pareto_front(tables)
    assert time.perf_counter() - began < 20  # a second or so
    assert len(front.errors) > 100

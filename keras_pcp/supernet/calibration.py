"""How much the error of each stage counts: the sum over stages is fitted to the errors of whole sub-nets.

The error of a stage is that of the full net with only this stage narrowed. When several stages are narrow, errors add up
differently: some are made good by later layers, others grow. So some whole sub-nets that cost about as much as the limits
allow are scored, and each stage gets the weight, 0 or more, by which the weighted sums come closest to their errors. As the
search goes for sub-nets to which the fit gives too low an error, those that look best are scored, too, and the weights
fitted again."""

import numpy as np

from keras_pcp.supernet.dynamic_programming import pareto_front
from keras_pcp.supernet.estimating import nonnegative_least_squares
from keras_pcp.supernet.growing import StageTables

RANDOM, BEST, ROUNDS = 24, 4, 4  # random sub-nets; those that look best in each round; rounds
DRAWN = 2000  # sub-nets of which those next to the limits are taken


def calibrate(tables: StageTables, bounds: np.ndarray, seed: int) -> np.ndarray:
    """Fits the weights of the stages, and sets them in the tables.

    Args:
        tables: the tables, with some options of every stage.
        bounds: the limits.
        seed: for the draw of sub-nets.

    Returns:
        The weights, (stages,).
    """
    if len(tables.tables) < 2:
        return tables.weights
    measured: dict[tuple, float] = {}
    wanted = next_to(tables, bounds, np.random.default_rng(seed))[:RANDOM]
    for _ in range(ROUNDS):
        for levels in wanted:
            if tuple(levels) not in measured:
                measured[tuple(levels)] = tables.errors.whole(levels)
                for stage, part in enumerate(tables.plan.parts):
                    tables.score(stage, levels[None, list(part.groups)])
        errors = np.array([tables.errors.of_all(np.array(levels)) for levels in measured])
        found = np.array(list(measured.values()))
        finite = np.isfinite(errors).all(axis=1) & np.isfinite(found)
        if finite.any():
            tables.weights = nonnegative_least_squares(errors[finite], found[finite])
        foreseen = tables.foreseen()
        front = pareto_front(foreseen)
        allowed = np.flatnonzero((front.costs <= bounds).all(axis=1))
        wanted = [tables.levels(foreseen, front.options[i]) for i in allowed[np.argsort(front.errors[allowed])[:BEST]]]
    return tables.weights


def next_to(tables: StageTables, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns different random sub-nets as levels, (sub-nets, groups), first those that cost about as much as the limits."""
    count, num_levels = tables.first.shape
    drawn = rng.integers(0, rng.integers(1, num_levels + 1, (DRAWN, 1)), (DRAWN, count))
    drawn = np.unique(tables.first[np.arange(count), drawn], axis=0)
    distance = np.abs(np.log(np.maximum(tables.costs(drawn), 1) / bounds).max(axis=1))
    return drawn[np.argsort(distance, kind="stable")]

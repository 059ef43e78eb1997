"""How much the error of each stage counts: the sum over stages is fitted to the errors of whole sub-nets.

The error of a stage is that of the full net with only this stage narrowed. When several stages are narrow, errors add up
differently: some are made good by later layers, others grow. So a few whole sub-nets are scored, and each stage gets the
weight, 0 or more, by which the weighted sums come closest to their errors. As the search goes for sub-nets to which the fit
gives too low an error, those that look best are scored, too, and the weights fitted again.
"""

import numpy as np

from keras_pcp.supernet.dynamic_programming import pareto_front
from keras_pcp.supernet.estimating import nonnegative_least_squares
from keras_pcp.supernet.growing import StageTables

RANDOM, BEST, ROUNDS = 24, 4, 4  # random sub-nets; those that look best in each round; rounds


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
    rng, (count, num_levels) = np.random.default_rng(seed), tables.first.shape
    measured: dict[tuple, float] = {}
    wanted = [rng.integers(0, rng.integers(2, num_levels + 1), count) for _ in range(RANDOM)]
    for _ in range(ROUNDS):
        for levels in wanted:
            levels = tables.first[np.arange(count), levels]
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

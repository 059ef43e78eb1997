"""Evolutionary search for the best sub-net: what the literature does where errors are not sums.

Guo et al., Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020, arXiv 1904.00420: a
population, of which the best become parents; half of the children are mutations of one parent, half are crossings of two.
"""

from collections.abc import Callable

import numpy as np


def evolve(
    error: Callable[[np.ndarray], float],
    allowed: Callable[[np.ndarray], bool],
    num_levels: int,
    num_groups: int,
    *,
    evaluations: int = 2000,
    population: int = 50,
    parents: int = 10,
    mutation: float = 0.1,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """Returns the sub-net with the least error that was found, as levels (groups,), and its error.

    Args:
        error: from levels (groups,), ints from 0 (narrowest) to `num_levels - 1`.
        allowed: whether the limits hold for these levels; it must for all 0.
        num_levels, num_groups: sizes of the search space.
        evaluations: number of sub-nets whose error is computed.
        population, parents: sub-nets in a generation, and how many of the best so far have children.
        mutation: probability that a group of a mutated child gets a random level.
        seed: for all draws.

    Example:
        >>> levels, least = evolve(lambda v: float(9 - v.sum()), lambda v: v.sum() <= 5, 4, 3, evaluations=100)
        >>> int(levels.sum()), least
        (5, 4.0)
    """
    rng = np.random.default_rng(seed)
    known: dict[tuple[int, ...], float] = {}

    def add(levels: np.ndarray) -> bool:
        key = tuple(levels.tolist())
        if key in known or len(known) >= evaluations or not allowed(levels):
            return False
        known[key] = error(levels)
        return True

    def random() -> np.ndarray:
        # With one largest level for all groups, narrow sub-nets are drawn as often as wide ones.
        return rng.integers(0, rng.integers(1, num_levels + 1), num_groups)

    add(np.zeros(num_groups, int))
    wanted, tries = min(population, evaluations), 0
    while len(known) < wanted and tries < 100 * population:
        tries += 1
        add(random())
    while len(known) < evaluations and tries < 100 * evaluations:
        best = np.array(sorted(known, key=known.__getitem__)[:parents])
        for child in range(population):
            first, second = best[rng.integers(len(best), size=2)]
            changed, new = rng.random(num_groups) < mutation, rng.integers(0, num_levels, num_groups)
            mixed = np.where(rng.random(num_groups) < 0.5, first, second)
            add(np.where(changed, new, first) if child % 2 else mixed)
            tries += 1
    found = min(known, key=known.__getitem__)
    return np.array(found), known[found]

"""Tables of stages that grow: first some options of each stage, then those of the sub-nets that are estimated to be best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_pcp.supernet.dynamic_programming import Front, Table, pareto_front
from keras_pcp.supernet.estimating import Estimates
from keras_pcp.supernet.scoring import StageErrors
from keras_pcp.supernet.tables import costs, count_options, distinct_levels, neighbours, options
from keras_pcp.support import internals

if TYPE_CHECKING:
    from keras_pcp.supernet.model import StagewiseSupernet

OPTIMISM = 0.3  # standard deviations by which estimates may be too high
MOST_OPTIMISM = 4.0  # the search ends if estimates that are lowered by so many bring nothing new
RAISE = 1.3  # factor for optimism when nothing is left to score
POOL = 10_000  # the most options of a stage that are estimated from the beginning; fewer with several limits


class StageTables:
    """The tables of all stages of a super-net, of which at most `most` options each are scored.

    A stage with no more than `most` options has all of them scored from the beginning. Of other stages, those are that have
    all groups at the same level (some of these, if `most` is small), and some random ones; `refine` scores others.

    Args:
        supernet: the super-net.
        errors: scores stages.
        limited: names of the costs that have a limit.
        most: the most options of a stage that are scored.
        seed: for the draw.
        verbose: whether to show a progress bar.

    Attributes:
        tables: the table of each stage; the error of an option that has not been scored is NaN.
        room: how many options of each stage may be scored.
    """

    def __init__(
        self,
        supernet: "StagewiseSupernet",
        errors: StageErrors,
        limited: Sequence[str],
        most: int,
        seed: int = 0,
        verbose: bool = False,
    ):
        plan, rng = supernet.plan, np.random.default_rng(seed)
        self.plan, self.errors, self.limited = plan, errors, list(limited)
        self.ranks, self.first = internals.array_of(supernet.ranks), distinct_levels(plan.levels)
        firsts = [self.first[list(part.groups)] for part in plan.parts]
        self.room = [min(most, count_options(first)) for first in firsts]
        self.bar = keras.utils.Progbar(sum(self.room), verbose=int(verbose), unit_name="option")
        self.places: list[dict[tuple, int]] = [{} for _ in plan.parts]  # in the tables
        limits = len(self.limited)
        empty = [(part.groups, np.empty((0, len(part.groups)), int)) for part in plan.parts]
        self.tables = [Table(groups, none, np.empty((0, limits)), np.empty(0)) for groups, none in empty]
        self.estimates = [Estimates(plan.levels[list(part.groups)]) for part in plan.parts]
        tied = [plan.gating.names.index(name) for name in plan.tied]
        for stage, (part, first) in enumerate(zip(plan.parts, firsts, strict=True)):
            pool = np.concatenate([first.T, options(part, tied, first, max(POOL // limits**2, most), rng)])
            self._enter(stage, pool)
            self.score(stage, pool if count_options(first) <= most else _beginning(first, pool, most, rng))

    def score(self, stage: int, levels: np.ndarray) -> int:
        """Scores options, (options, groups of the stage), that have not been scored yet, while there is room.

        Returns how many were scored.
        """
        self._enter(stage, levels)
        errors, count = self.tables[stage].errors, 0
        for row in levels:
            place = self.places[stage][tuple(row.tolist())]
            if np.isnan(errors[place]) and self._num_scored(stage) < self.room[stage]:
                errors[place] = self.errors.of(stage, row)
                self.estimates[stage].score(place, errors[place])
                self.bar.add(1)
                count += 1
        return count

    def refine(self, bounds: Sequence[float]) -> Front:
        """Scores the stages of the sub-net within the bounds that would be best if estimates were a little too high.

        When all of them are known, the same with less trust in the estimates. Ends when no stage has room, or no other
        sub-net is likely to be better. Returns the front of what has been scored.
        """
        optimism = OPTIMISM
        while self._has_room() and optimism < MOST_OPTIMISM:
            tables = self.foreseen(optimism)
            front = pareto_front(tables)
            best = front.best(bounds)
            if best is None:  # all errors are infinite
                break
            levels = self.levels(tables, front.options[best])
            around, scored = neighbours(levels, self.first), 0
            for stage, part in enumerate(self.plan.parts):
                scored += self.score(stage, levels[None, list(part.groups)])
                self._enter(stage, around[:, list(part.groups)])
            optimism = max(OPTIMISM, optimism / RAISE) if scored else optimism * RAISE
        self.bar.update(sum(map(self._num_scored, range(len(self.room)))), finalize=True)
        return pareto_front(self.scored())

    def scored(self) -> list[Table]:
        """Returns the tables of what has been scored."""
        return [_rows(table, ~np.isnan(table.errors)) for table in self.tables]

    def foreseen(self, optimism: float) -> list[Table]:
        """Returns the tables with estimates of what has not been scored, less some standard deviations.

        What cannot be scored any more, because its stage has no room, has infinite errors.
        """
        found = []
        for stage, (table, estimates) in enumerate(zip(self.tables, self.estimates, strict=True)):
            errors, unknown = table.errors.copy(), np.isnan(table.errors)
            if unknown.any():
                free = self._num_scored(stage) < self.room[stage]
                errors[unknown] = estimates.errors(optimism)[unknown] if free else np.inf
            found.append(replace(table, errors=errors))
        return found

    def levels(self, tables: Sequence[Table], chosen: np.ndarray) -> np.ndarray:
        """Returns the levels of all groups, given the option of each stage in its table."""
        levels = self.first[:, -1].copy()
        for table, option in zip(tables, chosen, strict=True):
            levels[list(table.groups)] = table.levels[option]
        return levels

    def _has_room(self) -> bool:
        return any(self._num_scored(stage) < room for stage, room in enumerate(self.room))

    def _num_scored(self, stage: int) -> int:
        return int((~np.isnan(self.tables[stage].errors)).sum())

    def _enter(self, stage: int, levels: np.ndarray) -> None:
        """Puts options into the table of a stage that it does not have, not scored."""
        places, table, part = self.places[stage], self.tables[stage], self.plan.parts[stage]
        new = [row for row in dict.fromkeys(map(tuple, levels.tolist())) if row not in places]
        if new:
            places |= {row: len(places) + i for i, row in enumerate(new)}
            added = np.array(new, int).reshape(len(new), len(part.groups))
            self.estimates[stage].enter(added)
            cost = costs(part, self.plan.gating, self.ranks, self.plan.levels[list(part.groups), added], self.limited)
            both = zip(
                (table.levels, table.costs, table.errors), (added, cost, np.full(len(added), np.nan)), strict=True
            )
            self.tables[stage] = Table(part.groups, *(np.concatenate(pair) for pair in both))


def _beginning(first: np.ndarray, pool: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Returns options of a stage to begin with: the narrowest, the full one, some between them, and some of the pool."""
    num_levels = first.shape[1]
    even = np.linspace(0, num_levels - 1, max(2, min(num_levels, most // 2))).round().astype(int)
    drawn = rng.choice(len(pool), min(-(-most // 10), len(pool)), replace=False)
    return np.concatenate([first.T[even], pool[drawn]])


def _rows(table: Table, which: np.ndarray) -> Table:
    """Returns a table with some of its options."""
    return Table(table.groups, table.levels[which], table.costs[which], table.errors[which])

"""Tables of stages that grow: first some options of each stage, then those of the sub-nets that are estimated to be best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_pcp.supernet.dynamic_programming import Front, Table, pareto_front
from keras_pcp.supernet.estimating import estimated
from keras_pcp.supernet.scoring import StageErrors
from keras_pcp.supernet.tables import costs, count_options, distinct_levels, neighbours, options
from keras_pcp.support import internals

if TYPE_CHECKING:
    from keras_pcp.supernet.model import StagewiseSupernet

ROUNDS = 20  # how often options are estimated again, about
LEAST_TRUST = 0.3  # the smallest factor for estimated errors
POOL = 10_000  # the most options of a stage that are estimated from the beginning


class StageTables:
    """The tables of all stages of a super-net, of which at most `most` options each are scored.

    A stage with no more than `most` options has all of them scored from the beginning. Of other stages, a quarter of `most`
    are drawn; `refine` scores others.

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
        tied = [plan.gating.names.index(name) for name in plan.tied]
        for stage, (part, first) in enumerate(zip(plan.parts, firsts, strict=True)):
            self._enter(stage, options(part, tied, first, max(POOL, most), rng))
            drawn = most if count_options(first) <= most else -(-most // 4)
            self.score(stage, options(part, tied, first, drawn, rng))

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
                self.bar.add(1)
                count += 1
        return count

    def refine(self, bounds: Sequence[float]) -> Front:
        """Scores the sub-nets with the least estimated errors, beginning with those next to the limits.

        When all of these are known, it goes on with those that would be best if estimates were too high by a tenth, and so
        on. Ends when no stage has room. Returns the front of what has been scored.
        """
        bounds, at_once, trust = np.asarray(bounds), -(-sum(self.room) // (2 * ROUNDS)), 1.0
        while self._has_room() and trust > LEAST_TRUST:
            tables = self.foreseen(trust)
            front, scored = pareto_front(tables), 0
            distance = np.abs(np.log(np.maximum(front.costs, 1) / bounds).max(axis=1))
            for place in np.argsort(distance, kind="stable"):
                levels = self.levels(tables, front.options[place])
                around = neighbours(levels, self.first)
                for stage, part in enumerate(self.plan.parts):
                    scored += self.score(stage, levels[None, list(part.groups)])
                    self._enter(stage, around[:, list(part.groups)])
                if scored >= at_once or not self._has_room():
                    break
            trust *= 1.0 if scored else 0.9
        self.bar.update(sum(map(self._num_scored, range(len(self.room)))), finalize=True)
        return pareto_front(self.scored())

    def scored(self) -> list[Table]:
        """Returns the tables of what has been scored."""
        return [_rows(table, ~np.isnan(table.errors)) for table in self.tables]

    def foreseen(self, trust: float = 1.0) -> list[Table]:
        """Returns the tables; errors of what has not been scored are the estimated ones times `trust`."""
        found = []
        for table in self.tables:
            errors, known, unknown = table.errors.copy(), np.isfinite(table.errors), np.isnan(table.errors)
            errors[unknown] = trust * estimated(
                table.levels[known], errors[known], table.levels[unknown], self.first.shape[1]
            )
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
            new = np.array(new, int).reshape(len(new), len(part.groups))
            cost = costs(part, self.plan.gating, self.ranks, self.plan.levels[list(part.groups), new], self.limited)
            both = zip((table.levels, table.costs, table.errors), (new, cost, np.full(len(new), np.nan)), strict=True)
            self.tables[stage] = Table(part.groups, *(np.concatenate(pair) for pair in both))


def _rows(table: Table, which: np.ndarray) -> Table:
    """Returns a table with some of its options."""
    return Table(table.groups, table.levels[which], table.costs[which], table.errors[which])

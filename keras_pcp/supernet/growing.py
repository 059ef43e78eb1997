"""Tables of stages that grow: first some options of each stage, then the neighbours of the best sub-nets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_pcp.supernet.dynamic_programming import Front, Table, pareto_front
from keras_pcp.supernet.scoring import StageErrors
from keras_pcp.supernet.tables import costs, count_options, distinct_levels, neighbours, options
from keras_pcp.support import internals

if TYPE_CHECKING:
    from keras_pcp.supernet.model import StagewiseSupernet

ROUNDS = 10  # how often the front is computed again, about


class StageTables:
    """The tables of all stages of a super-net, at most `most` options each.

    A stage with no more than `most` options has all of them from the beginning. Of other stages, half of `most` are drawn;
    `refine` adds the others.

    Args:
        supernet: the super-net.
        errors: scores stages.
        limited: names of the costs that have a limit.
        most: the most options of a stage.
        seed: for the draw.
        verbose: whether to show a progress bar.

    Attributes:
        tables: the table of each stage.
        weights: how much the error of each stage counts in that of a sub-net, (stages,).
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
        self.plan, self.errors, self.limited, self.most = plan, errors, list(limited), most
        self.ranks, self.first = internals.array_of(supernet.ranks), distinct_levels(plan.levels)
        self.room = [min(most, count_options(self.first[list(part.groups)])) for part in plan.parts]
        self.known: list[set[tuple]] = [set() for _ in plan.parts]
        self.tables = [
            Table(p.groups, np.empty((0, len(p.groups)), int), np.empty((0, len(self.limited))), np.empty(0))
            for p in plan.parts
        ]
        self.weights = np.ones(len(plan.parts))
        self.bar = keras.utils.Progbar(sum(self.room), verbose=int(verbose), unit_name="option")
        tied = [plan.gating.names.index(name) for name in plan.tied]
        for stage, part in enumerate(plan.parts):
            first = self.first[list(part.groups)]
            drawn = most if count_options(first) <= most else -(-most // 2)
            self.add(stage, options(part, tied, first, drawn, rng))

    def add(self, stage: int, levels: np.ndarray) -> int:
        """Scores options, (options, groups of the stage), that are not in the table of a stage yet, while it has room.

        Returns how many were added.
        """
        known, table, part = self.known[stage], self.tables[stage], self.plan.parts[stage]
        new = [row for row in dict.fromkeys(map(tuple, levels.tolist())) if row not in known]
        new = new[: self.room[stage] - len(known)]
        known |= set(new)
        new = np.array(new, int).reshape(len(new), len(part.groups))
        if len(new):
            found = [self._error(stage, row) for row in new]
            widths = self.plan.levels[list(part.groups), new]
            cost = costs(part, self.plan.gating, self.ranks, widths, self.limited)
            both = zip((table.levels, table.costs, table.errors), (new, cost, np.array(found)), strict=True)
            self.tables[stage] = Table(part.groups, *(np.concatenate(pair) for pair in both))
        return len(new)

    def _error(self, stage: int, levels: np.ndarray) -> float:
        self.bar.add(1)
        return self.errors.of(stage, levels)

    def refine(self, bounds: Sequence[float]) -> Front:
        """Adds neighbours of the sub-nets on the front, beginning with those next to the limits; returns the last front.

        Ends when no table has room, or no neighbour is left.
        """
        front, done, bounds = pareto_front(self.weighted()), set(), np.asarray(bounds)
        at_once = -(-sum(self.room) // (2 * ROUNDS))
        while any(len(known) < room for known, room in zip(self.known, self.room, strict=True)):
            distance = np.abs(np.log(np.maximum(front.costs, 1) / bounds).max(axis=1))
            near = [tuple(self.levels(front.options[i])) for i in np.argsort(distance, kind="stable")]
            near = [levels for levels in near if levels not in done]
            added = 0
            while near and added < at_once:
                done.add(levels := near.pop(0))
                around = neighbours(np.array(levels), self.first)
                added += sum(self.add(i, around[:, list(part.groups)]) for i, part in enumerate(self.plan.parts))
            if not added:
                break
            front = pareto_front(self.weighted())
        self.bar.update(sum(map(len, self.known)), finalize=True)
        return front

    def weighted(self) -> list[Table]:
        """Returns the tables with the errors as they count in the sum; a weight of 0 counts as a very small one."""
        least = 1e-6 * self.weights.max(initial=1e-300)
        return [replace(t, errors=t.errors * max(w, least)) for t, w in zip(self.tables, self.weights, strict=True)]

    def levels(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the levels of all groups, given the option of each stage."""
        levels = self.first[:, -1].copy()
        for table, option in zip(self.tables, chosen, strict=True):
            levels[list(table.groups)] = table.levels[option]
        return levels

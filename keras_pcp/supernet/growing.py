"""Tables of stages that grow: first some options of each stage, then the neighbours of the best sub-nets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_pcp.supernet.dynamic_programming import Front, Table, pareto_front
from keras_pcp.supernet.scoring import StageErrors
from keras_pcp.supernet.tables import costs, neighbours, options
from keras_pcp.support import internals

if TYPE_CHECKING:
    from keras_pcp.supernet.model import StagewiseSupernet

AT_ONCE = 10  # sub-nets whose neighbours are scored before the front is computed again


class StageTables:
    """The tables of all stages of a super-net, at most `most` options each.

    A stage that can be like nothing else has all its options from the beginning. Of other stages, half of `most` are
    drawn; `refine` adds the others.

    Args:
        supernet: the super-net.
        errors: scores stages.
        limited: names of the costs that have a limit.
        most: the most options of a stage.
        seed: for the draw.
        verbose: whether to show a progress bar.
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
        self.ranks, self.num_levels = internals.array_of(supernet.ranks), plan.levels.shape[1]
        self.known: list[dict[tuple, None]] = [{} for _ in plan.parts]
        self.tables = [
            Table(p.groups, np.empty((0, len(p.groups)), int), np.empty((0, len(self.limited))), np.empty(0))
            for p in plan.parts
        ]
        total = sum(min(most, self.num_levels ** len(part.groups)) for part in plan.parts)
        self.bar = keras.utils.Progbar(total, verbose=int(verbose), unit_name="option")
        tied = [plan.gating.names.index(name) for name in plan.tied]
        for stage, part in enumerate(plan.parts):
            complete = self.num_levels ** len(part.groups) <= most
            self.add(stage, options(part, tied, self.num_levels, most if complete else -(-most // 2), rng))

    def add(self, stage: int, levels: np.ndarray) -> int:
        """Scores options, (options, groups of the stage), that are not in the table of a stage yet, while it has room.

        Returns how many were added.
        """
        known, table, part = self.known[stage], self.tables[stage], self.plan.parts[stage]
        new = [row for row in dict.fromkeys(map(tuple, levels.tolist())) if row not in known]
        new = np.array(new[: self.most - len(known)], int).reshape(-1, len(part.groups))
        if len(new):
            found = []
            for row in new:
                found.append(self.errors.of(stage, row))
                self.bar.add(1)
            known |= dict.fromkeys(map(tuple, new.tolist()))
            widths = self.plan.levels[list(part.groups), new]
            cost = costs(part, self.plan.gating, self.ranks, widths, self.limited)
            both = zip((table.levels, table.costs, table.errors), (new, cost, np.array(found)), strict=True)
            self.tables[stage] = Table(part.groups, *(np.concatenate(pair) for pair in both))
        return len(new)

    def refine(self, bounds: Sequence[float]) -> Front:
        """Adds neighbours of the sub-nets on the front, beginning with those next to the limits; returns the last front.

        Ends when no table has room, or no neighbour is left.
        """
        front, done = pareto_front(self.tables), set()
        while any(len(known) < self.most for known in self.known):
            distance = np.abs(np.log(np.maximum(front.costs, 1) / np.asarray(bounds))).max(axis=1)
            near = [tuple(self.levels(front.options[i])) for i in np.argsort(distance, kind="stable")]
            near = [levels for levels in near if levels not in done][:AT_ONCE]
            if not near:
                break
            added = 0
            for levels in near:
                around = neighbours(np.array(levels), self.num_levels)
                added += sum(self.add(i, around[:, list(part.groups)]) for i, part in enumerate(self.plan.parts))
            done |= set(near)
            front = pareto_front(self.tables) if added else front
        return front

    def levels(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the levels of all groups, given the option of each stage."""
        levels = np.full(len(self.plan.gating.names), self.num_levels - 1)
        for table, option in zip(self.tables, chosen, strict=True):
            levels[list(table.groups)] = table.levels[option]
        return levels

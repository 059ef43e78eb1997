"""Finds the best sub-nets exactly, if errors and costs are sums over stages.

A stage has a table of options. An option gives widths to all groups of the stage. Groups that several stages have must
get the same width in all of them. Going from stage to stage, it is enough to remember, for each assignment of widths to
the groups that later stages share, the options so far that no other beats in cost and error.
"""

import bisect
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Table:
    """What is known of one stage.

    Attributes:
        groups: numbers of its groups.
        levels: what each option gives to each group, ints (options, groups).
        costs: costs of each option, (options, limits).
        errors: errors, (options,).
    """

    groups: tuple[int, ...]
    levels: np.ndarray
    costs: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True, eq=False)
class Front:
    """All sub-nets that no other beats, the cheapest first.

    Attributes:
        options: the option of each stage, ints (sub-nets, stages).
        costs: their costs, (sub-nets, limits).
        errors: their errors, (sub-nets,).
    """

    options: np.ndarray
    costs: np.ndarray
    errors: np.ndarray

    def best(self, bounds: Sequence[float]) -> int | None:
        """Returns the number of the sub-net with the least error that exceeds no bound; None if there is none."""
        allowed = np.flatnonzero((self.costs <= np.asarray(bounds)).all(axis=1))
        return int(allowed[np.argmin(self.errors[allowed])]) if len(allowed) else None


def pareto_front(tables: Sequence[Table]) -> Front:
    """Returns the sub-nets that no other beats in all costs and the error.

    Example:
        >>> cheap_or_good = np.array([[0], [1]]), np.array([[1.0], [3.0]]), np.array([0.5, 0.0])
        >>> front = pareto_front([Table((0,), *cheap_or_good), Table((1,), *cheap_or_good)])
        >>> front.costs.ravel().tolist(), front.errors.tolist(), front.best([4.5])
        ([2.0, 4.0, 6.0], [1.0, 0.5, 0.0], 1)
    """
    limits = tables[0].costs.shape[1]
    known: dict[tuple, Front] = {(): Front(np.zeros((1, 0), int), np.zeros((1, limits)), np.zeros(1))}
    open_groups: tuple[int, ...] = ()
    for number, table in enumerate(tables):
        later = {group for other in tables[number + 1 :] for group in other.groups}
        still_open = tuple(sorted({*open_groups, *table.groups} & later))
        shared = [group for group in open_groups if group in table.groups]
        passed_on = [group for group in still_open if group in table.groups]
        by_levels: dict[tuple, dict[tuple, list[int]]] = {}
        for option in _worthwhile(table, {*open_groups, *later}):
            gets = dict(zip(table.groups, table.levels[option].tolist(), strict=True))
            alike = by_levels.setdefault(tuple(gets[group] for group in shared), {})
            alike.setdefault(tuple(gets[group] for group in passed_on), []).append(option)
        found: dict[tuple, list[Front]] = {}
        for key, front in known.items():
            has = dict(zip(open_groups, key, strict=True))
            for levels, chosen in by_levels.get(tuple(has[group] for group in shared), {}).items():
                now = has | dict(zip(passed_on, levels, strict=True))
                found.setdefault(tuple(now[group] for group in still_open), []).append(_extended(front, table, chosen))
        known, open_groups = {key: _undominated(fronts) for key, fronts in found.items()}, still_open
    if not known:  # all errors are infinite, or what two stages share never has the same width
        return Front(np.zeros((0, len(tables)), int), np.zeros((0, limits)), np.zeros(0))
    return _undominated(list(known.values()))


def _extended(front: Front, table: Table, chosen: Sequence[int]) -> Front:
    """Returns every sub-net of a front with each of some options of the next stage."""
    sub_nets, added = np.repeat(np.arange(len(front.errors)), len(chosen)), np.tile(chosen, len(front.errors))
    return Front(
        np.column_stack([front.options[sub_nets], added]),
        front.costs[sub_nets] + table.costs[added],
        front.errors[sub_nets] + table.errors[added],
    )


def _worthwhile(table: Table, shared: Collection[int]) -> list[int]:
    """Returns the options that no other one with the same levels of the shared groups beats or equals."""
    columns = [i for i, group in enumerate(table.groups) if group in shared]
    order = np.lexsort(table.levels[:, columns].T) if columns else np.arange(len(table.errors))
    differ = (np.diff(table.levels[order][:, columns], axis=0) != 0).any(axis=1)
    found = []
    for same in np.split(order, np.flatnonzero(differ) + 1):
        found += _undominated([Front(same[:, None], table.costs[same], table.errors[same])]).options[:, 0].tolist()
    return sorted(found)


def _undominated(fronts: list[Front]) -> Front:
    """Joins fronts, and leaves out what another sub-net beats or equals, or has an infinite error."""
    joined = Front(*(np.concatenate([getattr(f, name) for f in fronts]) for name in ("options", "costs", "errors")))
    finite = np.isfinite(joined.errors)
    joined = Front(joined.options[finite], joined.costs[finite], joined.errors[finite])
    order = np.lexsort((joined.errors, *joined.costs.T[::-1]))
    costs, errors = joined.costs[order], joined.errors[order]
    if costs.shape[1] == 1:
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(errors)[:-1]])
        kept = np.flatnonzero(errors < best_before).tolist()
    elif costs.shape[1] == 2:
        kept = _staircase(costs[:, 1].tolist(), errors.tolist())
    else:
        kept = []
        for i in range(len(order)):
            beaten = (costs[kept] <= costs[i]).all(axis=1) & (errors[kept] <= errors[i])
            kept += [] if beaten.any() else [i]
    return Front(joined.options[order[kept]], costs[kept], errors[kept])


def _staircase(costs: list[float], errors: list[float]) -> list[int]:
    """Returns which of the sub-nets no earlier one beats or equals in this cost and the error."""
    stairs: list[tuple[float, float]] = []  # costs rising, errors falling
    kept = []
    for i, step in enumerate(zip(costs, errors, strict=True)):
        place = bisect.bisect(stairs, step[0], key=lambda stair: stair[0])
        if (stairs[place - 1][1] if place else math.inf) > step[1]:
            kept.append(i)
            last = place
            while last < len(stairs) and stairs[last][1] >= step[1]:
                last += 1
            first = place - (place > 0 and stairs[place - 1][0] == step[0])
            stairs[first:last] = [step]
    return kept

"""Racing: finds the best few of many attempts without measuring each of them on all samples.

Attempts are measured on the same samples, part by part. A boundary separates the best attempts from the rest. As
soon as it is clear on which side an attempt ends, it drops out of the race. Results of earlier rounds are reused: on
samples that have not been measured yet, the earlier drop is taken, plus the mean change on the samples that have been.
From one round to the next, a drop changes far less than it differs between samples, so few samples are enough. If an
attempt removes other channels than before, the earlier drops say less. A regression on the measured samples finds out
how much less. An attempt whose drop was above the boundary by more than the standard error of a drop rests for a few
rounds: it is not measured, unless it is among the best by then. So a round of a network with many groups measures a part of
them.

References:
    Maron & Moore, Hoeffding Races, NIPS 1993. There errors are bounded for any distribution; here they are estimated.
    The memory over rounds is ours.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

# The loss decides only between equal metrics.
_LOSS_WEIGHT = 1e-6
_WEIGHTS = np.array([1.0, _LOSS_WEIGHT])
# An attempt rests for so many rounds in a row at most.
_RESTS = 2
# Stands for a drop that is not a finite number: the attempt ruins the model.
_RUIN = 1e6


def worth(fall: float, rise: float) -> float:
    """Returns the number by which attempts are compared. The smallest is pruned first."""
    return round(fall + _LOSS_WEIGHT * rise, 12)


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of one attempt.

    Attributes:
        removed: channel numbers that it removes, in the unpruned model.
        drops: float array (chunks, 2): fall of the metric and rise of the loss on each chunk of samples. They are
            estimates on chunks that have not been measured.
        error: standard error of the mean drop. The loss counts next to nothing in it.
        share: fraction of the samples on which it was measured in the latest race.
        rests: number of races in a row in which it has not been measured.
    """

    removed: tuple[int, ...]
    drops: np.ndarray
    error: float = np.inf
    share: float = 0.0
    rests: int = 0

    def mean(self) -> tuple[float, float]:
        """Returns the expected fall of the metric and rise of the loss on all samples."""
        fall, rise = self.drops.mean(axis=0, dtype=float)
        return float(fall), float(rise)

    def value(self) -> float:
        """Returns the number by which attempts are compared. The smallest is pruned first."""
        return worth(*self.mean())

    def awake(self) -> "Measured":
        """Returns the same, but the attempt does not rest in the next race."""
        return replace(self, rests=_RESTS)

    def spread(self) -> float:
        """Returns the standard error of the mean drop if other samples were drawn."""
        return float(np.std(self.drops @ _WEIGHTS) / np.sqrt(len(self.drops)))


Compare = Callable[[Collection[str], slice], Mapping[str, np.ndarray]]


def race(
    candidates: Mapping[str, tuple[int, ...]],
    known: Mapping[str, Measured],
    compare: Compare,
    parts: Sequence[slice],
    count: int,
    confidence: float = np.inf,
) -> dict[str, Measured]:
    """Measures attempts until it is clear which are the best `count`.

    Args:
        candidates: {group: channels that an attempt removes}.
        known: what earlier races found.
        compare: function that measures the named attempts on a slice of the chunks and returns {group: float array
            (chunks in the slice, 2)}, fall of the metric and rise of the loss.
        parts: slices that divide the chunks, in the order of the race. Every attempt that does not rest is measured on the
            first one.
        count: number of best attempts to find.
        confidence: an attempt drops out when it is this number of standard errors away from the boundary. The boundary
            is taken as known exactly.

    Returns:
        {group: what is known of it now}.

    Example:
        >>> drops = {"a": np.tile([0.1, 0.0], (8, 1)), "b": np.tile([0.5, 0.0], (8, 1)), "c": np.zeros((8, 2))}
        >>> asked = []
        >>> def compare(names, part):
        ...     asked.append(sorted(names))
        ...     return {name: drops[name][part] for name in names}
        >>> found = race({"a": (0,), "b": (0,), "c": (0,)}, {}, compare, [slice(0, 4), slice(4, 8)], 1, 3.0)
        >>> min(found, key=lambda name: found[name].value()), asked
        ('c', [['a', 'b', 'c']])
    """
    chunks = max(part.stop for part in parts)
    known = {n: known[n] for n in candidates if n in known and len(known[n].drops) == chunks}
    runs = {name: _Run(removed, known.get(name), chunks) for name, removed in candidates.items()}
    resting, state = _resting(candidates, known, count, confidence), {}

    def measure(names: Collection[str], part: slice) -> None:
        for name, drops in compare(names, part).items():
            runs[name].add(part, drops)
        usual = float(np.median([run.variance() for run in runs.values() if run.seen.any()]))
        state.update({name: run.known(usual) for name, run in runs.items() if run.seen.any()})

    def run(names: Collection[str]) -> None:
        for part in parts:
            if unseen := [name for name in names if not runs[name].seen[part].any()]:
                measure(unseen, part)
            names = [name for name in state if _is_open(name, resting | state, count, confidence)]
            if not names:
                return

    run([name for name in runs if name not in resting])
    while woken := [name for name in _best(resting | state, count) if name not in state]:
        run(woken)
    return resting | state


def _resting(
    candidates: Mapping[str, tuple[int, ...]], known: Mapping[str, Measured], count: int, confidence: float
) -> dict[str, Measured]:
    """Returns what is known of the attempts that rest.

    Attempts of which nothing is known are left out of the boundary: they could only lower it.
    """
    same = {n: m for n, m in known.items() if set(m.removed) == set(candidates[n])}
    if count >= len(same):
        return {}
    boundary = _boundary(same, count)
    margin = {n: np.hypot(m.spread(), confidence * m.error if m.error else 0.0) for n, m in same.items()}
    clear = {n: m for n, m in same.items() if m.value() - boundary > margin[n]}
    return {n: replace(m, share=0.0, rests=m.rests + 1) for n, m in clear.items() if m.rests < _RESTS}


def _best(state: Mapping[str, Measured], count: int) -> list[str]:
    return sorted(state, key=lambda name: state[name].value())[:count]


def _boundary(state: Mapping[str, Measured], count: int) -> float:
    """Returns the value between the best `count` and the others."""
    values = sorted(measured.value() for measured in state.values())
    return (values[count - 1] + values[count]) / 2


def _is_open(name: str, state: Mapping[str, Measured], count: int, confidence: float) -> bool:
    """Returns whether it is unclear on which side of the boundary an attempt ends."""
    if count >= len(state):
        return False
    mine = state[name]
    return mine.share < 1 and not abs(mine.value() - _boundary(state, count)) > confidence * mine.error


class _Run:
    """One attempt in a race: what is known of it from earlier races, and what has been measured in this one."""

    def __init__(self, removed: tuple[int, ...], earlier: Measured | None, chunks: int):
        self.removed = removed
        self.earlier = earlier.drops if earlier else np.zeros((chunks, 2))
        self.error = earlier.error if earlier else 0.0
        self.same = earlier is None or set(earlier.removed) == set(removed)
        self.measured, self.seen = np.zeros((chunks, 2)), np.zeros(chunks, bool)

    def add(self, part: slice, drops: np.ndarray) -> None:
        """Adds the drops measured on a part."""
        self.measured[part] = np.nan_to_num(drops, nan=_RUIN, posinf=_RUIN, neginf=-_RUIN)
        self.seen[part] = True

    def slope(self) -> float:
        """The expected drop now for an earlier drop of 1: 1 if the channels are the same, else from a regression."""
        if self.same:
            return 1.0
        then, now = ((a[self.seen] @ _WEIGHTS) for a in (self.earlier, self.measured))
        return float(np.clip((now - now.mean()) @ then / max(np.var(then) * len(then), 1e-12), 0, 2))

    def change(self) -> np.ndarray:
        """Difference between measured and expected drop on each measured chunk: float array (measured, 2)."""
        return (self.measured - self.slope() * self.earlier)[self.seen]

    def variance(self) -> float:
        """Variance of the change between chunks."""
        return float(np.var(self.change() @ _WEIGHTS))

    def known(self, usual: float) -> Measured:
        """What is known now.

        As long as some chunks are estimated, the error of the earlier drops adds to the error of their mean change. The
        variance comes from few chunks, so it is pulled towards the `usual` one with the weight of one chunk.
        """
        change, total, slope = self.change(), len(self.seen), self.slope()
        count = len(change)
        drops = np.where(self.seen[:, None], self.measured, slope * self.earlier + change.mean(axis=0))
        variance = (count * self.variance() + usual) / (count + 1)
        fitted = 1 if self.same else 2  # the mean of the change, and the slope
        error = np.sqrt(variance / max(1, count - fitted) * (total - count) / total)
        error = np.hypot(error, slope * self.error) if count < total else 0.0
        return Measured(self.removed, drops, float(error), count / total)

"""Channel labels: integers that flow through the graph, and the table that collects facts about them.

A tensor carries `Labels(axis, ids)`: position i along `axis` belongs to channel `ids[i]`, and nothing else about the
tensor depends on channels. 0 is a position that can never be removed. A tensor without labels has None.

No tensor has labels along two axes. If an operation would lead to that (for example a reshape that splits the channel
axis), the labels along all axes but one are tied. So what is removed is always a whole slice along one axis.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a tensor: `ids[i]` is the channel of position i along `axis` (counted from 0, batch axis included)."""

    axis: int
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class LabelTable:
    """Creates labels, and records ties, frozen labels and inexact labels; `resolve` turns them into classes."""

    def __init__(self):
        self.count = 1
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._inexact: list[tuple[np.ndarray, str]] = []

    def create(self, size: int) -> np.ndarray:
        """Returns `size` new labels."""
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids

    def tie(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        """Ties a[i] with b[i]. A label tied with 0 is frozen, and `reason` says why."""
        if a is b:
            return
        free = (a > 0) & (b > 0)
        self._ties.append((a[free], b[free]))
        self.freeze(np.concatenate([a[b == 0], b[a == 0]]), reason)

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        """Marks labels that must never be removed."""
        ids = ids[ids > 0]
        if len(ids):
            self._frozen.append((ids, reason))

    def mark_inexact(self, ids: np.ndarray, reason: str) -> None:
        """Marks labels whose removal changes statistics over channels."""
        if len(ids[ids > 0]):
            self._inexact.append((ids[ids > 0], reason))

    def resolve(self) -> "Classes":
        """Returns the classes of tied labels."""
        root = connected(self.count, self._ties)
        reason_index = np.full(self.count, -1)
        for i in range(len(self._frozen) - 1, -1, -1):
            reason_index[root[self._frozen[i][0]]] = i
        reason_index[0] = -1
        inexact = np.zeros(self.count, bool)
        for ids, _ in self._inexact:
            inexact[root[ids]] = True
        frozen = reason_index[root] >= 0
        frozen[0] = True
        reasons = [reason for _, reason in self._frozen]
        return Classes(root, frozen, reason_index[root], reasons, inexact[root])


@dataclass(frozen=True, eq=False)
class Classes:
    """The resolved table, indexed by label: class (smallest tied label), frozen, index of the reason, inexact."""

    root: np.ndarray
    frozen: np.ndarray
    reason_index: np.ndarray
    reasons: list[str]
    inexact: np.ndarray

    def reason(self, label: int) -> str:
        """Returns why a frozen label is frozen."""
        return self.reasons[self.reason_index[label]] if self.reason_index[label] >= 0 else "fixed"


def connected(count: int, ties: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns for each of `count` items the smallest item that pairs (a[i], b[i]) connect it with.

    Repeats two steps, without a Python loop over items: hook each root to the smaller one, and jump pointers.
    """
    root = np.arange(count)
    if not ties:
        return root
    a, b = (np.concatenate(side) for side in zip(*ties, strict=True))
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        open_ = low != high
        if not open_.any():
            return root
        np.minimum.at(root, high[open_], low[open_])
        while True:
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped

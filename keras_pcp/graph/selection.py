"""A selection: which channels of which groups stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import checks


@dataclass(frozen=True, eq=False)
class Selection:
    """Which channels stay: a boolean array for each group, True = keep. Groups that are not listed keep all channels.

    Args:
        keep: {group name: one bool for each channel of the group, as array or list}.

    Raises:
        InvalidArgumentError: something else is given.

    Example:
        >>> import numpy as np
        >>> first = Selection({"conv": np.array([True, True, False, True])})
        >>> second = Selection({"conv": np.array([False, True, True])})
        >>> first.then(second).keep["conv"].tolist()
        [False, True, False, True]
    """

    keep: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        given = checks.instance("keep", self.keep, Mapping, "{group name: boolean array, True = keep}")
        arrays = {checks.instance("a group's name", name, str, "a str"): _mask(name, m) for name, m in given.items()}
        object.__setattr__(self, "keep", MappingProxyType(arrays))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        mine, theirs = self.removed(), other.removed()
        return mine.keys() == theirs.keys() and all(np.array_equal(mine[k], theirs[k]) for k in mine)

    __hash__ = None  # type: ignore[assignment]  # the way to say so in Python; mypy supposes that all can be hashed

    def removed(self) -> dict[str, np.ndarray]:
        """Returns the numbers of the removed channels, for the groups that lose any."""
        return {name: np.flatnonzero(~mask) for name, mask in self.keep.items() if not mask.all()}

    @property
    def num_removed(self) -> int:
        """Number of removed channels."""
        return sum(len(c) for c in self.removed().values())

    def then(self, second: "Selection") -> "Selection":
        """Returns one selection that does the same as this one, followed by `second` on the pruned model."""
        keep = {name: mask.copy() for name, mask in self.keep.items()}
        for name, mask in checked_selection("second", second).keep.items():
            if name not in keep:
                keep[name] = mask
            elif np.count_nonzero(keep[name]) != len(mask):
                raise InvalidArgumentError(
                    f"group {name!r} has {np.count_nonzero(keep[name])} channels left, "
                    f"but the second selection is for {len(mask)}"
                )
            else:
                keep[name][np.flatnonzero(keep[name])] = mask
        return Selection(keep)

    def after(self, first: "Selection") -> "Selection":
        """Returns this selection in the numbering of a model that has already been pruned by `first`.

        This selection must remove the channels that `first` removed, too.
        """
        keep, before = {}, checked_selection("first", first).keep
        for name, mask in self.keep.items():
            base = before.get(name, np.ones(len(mask), bool))
            if len(base) != len(mask):
                raise InvalidArgumentError(
                    f"both selections must be of the same model, but for group {name!r} one is for {len(mask)} channels, "
                    f"the other for {len(base)}"
                )
            if (mask & ~base).any():
                raise InvalidArgumentError(f"group {name!r}: a channel that was already removed cannot be kept")
            keep[name] = mask[base]
        return Selection(keep)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict: group name -> {"channels": n, "removed": [numbers]}."""
        return {n: {"channels": len(m), "removed": np.flatnonzero(~m).tolist()} for n, m in self.keep.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> "Selection":
        """Inverse of `to_json`.

        Raises:
            InvalidArgumentError: the data is not what `to_json` returns.
        """
        keep, expected = {}, 'a dict as to_json() returns it, {group name: {"channels": n, "removed": [numbers]}}'
        for name, entry in checks.instance("data", data, Mapping, expected).items():
            if not isinstance(entry, Mapping) or not {"channels", "removed"} <= set(entry):
                raise checks.refusal(f"the entry of group {name!r}", '{"channels": n, "removed": [numbers]}', entry)
            channels = checks.count(f"the number of channels of group {name!r}", entry["channels"])
            removed = checks.instance(
                f"what is removed of group {name!r}", entry["removed"], Sequence, "a list of numbers"
            )
            for number in removed:
                if checks.count(f"a channel of group {name!r}", number, 0) >= channels:
                    raise InvalidArgumentError(f"group {name!r} has {channels} channels, so it has no channel {number}")
            keep[name] = ~np.isin(np.arange(channels), removed)
        return cls(keep)


def _mask(name: str, given: Any) -> np.ndarray:
    try:
        mask = np.array(given)
    except Exception:  # ragged, or of a class that is not an array
        mask = np.array(None)
    if mask.dtype != bool or mask.ndim != 1 or not len(mask):
        raise checks.refusal(
            f"the selection of group {name!r}",
            "a 1-D boolean array (True = keep), one for each channel",
            given,
            "to pass the numbers of the channels that stay, use np.isin(np.arange(num_channels), numbers)",
        )
    mask.setflags(write=False)
    return mask


def checked_selection(name: str, value: Any) -> Selection:
    """Returns a selection; raises InvalidArgumentError for anything else."""
    advice = "make one with keras_pcp.select_by_ratio, or as keras_pcp.Selection({group name: boolean array})"
    return checks.instance(name, value, Selection, "a keras_pcp.Selection", advice)

"""The frozen dataclasses of the core: channel groups, the graph that holds them, and selections.

Nothing here knows Keras. A weight is named by its index in `model.weights`, an operation or a tensor by its index in
the order in which `keras_pcp.trace` lists them, so a graph is valid for any model of the same structure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from keras_pcp import checks
from keras_pcp.errors import InvalidArgumentError

PRODUCE, FOLLOW, CONSUME = "produce", "follow", "consume"
# Stands for the layer of weights that no call of the model uses, such as those of a teacher that the model holds.
IDLE = "(used by no call)"


@dataclass(frozen=True, eq=False)
class WeightSlice:
    """Which positions along one axis of one weight belong to which channels of a group.

    Attributes:
        weight: index in `model.weights`.
        path: the weight's path, for messages.
        layer: name of the layer that owns the weight.
        axis: axis of the weight.
        role: `"produce"` (makes the channel), `"follow"` (one value per channel) or `"consume"` (reads the channel).
        part: what the weight is: `"kernel"`, `"bias"`, `"scale"`, `"offset"`, ...
        channels: int array (n,), channel numbers in the group.
        positions: int array (n,), positions along the axis.
    """

    weight: int
    path: str
    layer: str
    axis: int
    role: str
    part: str
    channels: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are decided together, one by one: channel c of every member goes or stays.

    Attributes:
        name: name of the first layer that produces the channels.
        num_channels: number of channels.
        slices: every weight axis that belongs to the group.
        exact: True if the pruned model computes exactly what the masked model computes.
        parts: int arrays of channels of which one must stay, because an axis holds nothing else. (The whole group is
            such a part too, and is not listed.)
    """

    name: str
    num_channels: int
    slices: tuple[WeightSlice, ...]
    exact: bool = True
    parts: tuple[np.ndarray, ...] = ()

    def slices_of(self, role: str, part: str | None = None) -> tuple[WeightSlice, ...]:
        """Returns the slices with a role, and with a part if one is given."""
        return tuple(s for s in self.slices if s.role == role and part in (None, s.part))

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the layers that make the channels."""
        return tuple(dict.fromkeys(s.layer for s in self.slices_of(PRODUCE)))


@dataclass(frozen=True, eq=False)
class Extent:
    """A number that shrinks with the channels: `size` minus one for every removed channel listed in `pieces`.

    Attributes:
        size: the number before pruning.
        pieces: pairs of a group name and an int array of channel numbers; a channel counts as often as it is listed.
    """

    size: int
    pieces: tuple[tuple[str, np.ndarray], ...] = ()

    def after(self, keep: Mapping[str, np.ndarray]) -> int:
        """Returns the number after a selection."""
        removed = sum(np.count_nonzero(~keep[name][channels]) for name, channels in self.pieces if name in keep)
        return self.size - int(removed)


@dataclass(frozen=True, eq=False)
class Width:
    """An integer outside the weights that has to follow a selection, such as `filters` or a tensor's shape.

    Attributes:
        owner: `"operation"`, `"argument"` (of a call) or `"tensor"`.
        index: index of the operation, call or tensor in the trace.
        path: where in the owner the number stands: attribute names and sequence indices.
        extent: the number itself.
    """

    owner: str
    index: int
    path: tuple[Any, ...]
    extent: Extent


@dataclass(frozen=True, eq=False)
class CostTerm:
    """`factor` times the product of some extents: the multiply-accumulates of one operation on one sample.

    `factor` is NaN where it is not known, and `why` says why.
    """

    layer: str
    factor: float
    extents: tuple[Extent, ...]
    why: str = ""


@dataclass(frozen=True, eq=False)
class WeightInfo:
    """A weight's path, owning layer, bytes per element, shape as extents.

    The layer is empty if the weight does not count, because the plain model or what is delivered does without it, and
    `IDLE` if it belongs to the model but no call uses it.
    """

    path: str
    layer: str
    itemsize: int
    shape: tuple[Extent, ...]


@dataclass(frozen=True)
class Frozen:
    """Output channels of a layer that are never pruned, and why."""

    layer: str
    num_channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What is coupled with what in a model, what is frozen and why, and what everything costs.

    Made by `keras_pcp.build_graph`; iterate over it to get the groups, `graph["name"]` gives one, `print(graph)` shows
    the report of `keras_pcp.inspection`.

    Attributes:
        model_name: name of the model.
        groups: {name: group}, in the order of execution.
        frozen: what is never pruned, and why.
        weights: what is known of each weight, by its index in `model.weights`.
        widths: every number outside the weights that follows a selection.
        macs: what the multiply-accumulates are summed from.
        notes: remarks for the reader of the report.
        blocks: names of the layers that were opened to see what they hide; a model with blocks is pruned as
            `inline_blocks(model)`.
        fingerprint: what the calls of the model are, apart from widths; a graph fits models with the same one.
    """

    model_name: str
    groups: Mapping[str, ChannelGroup]
    frozen: tuple[Frozen, ...]
    weights: tuple[WeightInfo, ...]
    widths: tuple[Width, ...]
    macs: tuple[CostTerm, ...]
    notes: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    fingerprint: str = ""

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        if not isinstance(name, str) or name not in self.groups:
            raise InvalidArgumentError(f"no channel group named {name!r}; groups: {shorten(self.groups)}")
        return self.groups[name]

    def __str__(self) -> str:
        from keras_pcp.inspection import inspect_graph  # it stands above this module, since it counts costs

        return str(inspect_graph(self))


@dataclass(frozen=True, eq=False)
class Selection:
    """Which channels of which groups stay: a boolean array per group, True = keep. A group not named stays whole.

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

    __hash__ = None

    def removed(self) -> dict[str, np.ndarray]:
        """Returns the numbers of the removed channels, for the groups that lose any."""
        return {name: np.flatnonzero(~mask) for name, mask in self.keep.items() if not mask.all()}

    @property
    def num_removed(self) -> int:
        """Number of removed channels."""
        return sum(len(c) for c in self.removed().values())

    def then(self, second: "Selection") -> "Selection":
        """Returns the selection that does at once what this one does followed by `second` on the pruned model."""
        keep = {name: mask.copy() for name, mask in self.keep.items()}
        for name, mask in _selection("second", second).keep.items():
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
        """Returns this selection in the numbering of a model from which `first` has been removed already.

        Channels that `first` removed must be removed here too.
        """
        keep, before = {}, _selection("first", first).keep
        for name, mask in self.keep.items():
            base = before.get(name, np.ones(len(mask), bool))
            if len(base) != len(mask):
                raise InvalidArgumentError(
                    f"both selections must be of the same model, but for group {name!r} one is for {len(mask)} channels, "
                    f"the other for {len(base)}"
                )
            if (mask & ~base).any():
                raise InvalidArgumentError(f"group {name!r}: a channel that is gone already cannot be kept")
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
    except Exception:  # ragged, or of a class that is no array
        mask = np.array(None)
    if mask.dtype != bool or mask.ndim != 1 or not len(mask):
        raise checks.refusal(
            f"the selection of group {name!r}", "a 1-D boolean array (True = keep), one for each channel", given,
            "for numbers of channels that stay, give np.isin(np.arange(num_channels), numbers)",
        )  # fmt: skip
    mask.setflags(write=False)
    return mask


def _selection(name: str, value: Any) -> Selection:
    advice = "make one with keras_pcp.select_by_ratio, or as keras_pcp.Selection({group name: boolean array})"
    return checks.instance(name, value, Selection, "a keras_pcp.Selection", advice)


def check_graph(graph: ChannelGraph) -> None:
    """Raises InvalidArgumentError unless it is a channel graph."""
    checks.instance("graph", graph, ChannelGraph, "a ChannelGraph", "pass keras_pcp.build_graph(model)")


def check_selection(graph: ChannelGraph, selection: Selection) -> None:
    """Raises InvalidArgumentError unless `selection` fits `graph` and leaves every group and width at least 1 channel."""
    check_graph(graph)
    _selection("selection", selection)
    for name, mask in selection.keep.items():
        group = graph[name]
        if len(mask) != group.num_channels:
            raise InvalidArgumentError(
                f"selection of group {name!r} has {len(mask)} entries, the group has {group.num_channels} channels"
            )
        if not mask.any():
            raise InvalidArgumentError(f"selection would remove all {len(mask)} channels of group {name!r}; keep one")
    for width in graph.widths:
        # A slice may well start at 0 afterwards; it is the tensors that must not vanish.
        if width.owner == "tensor" and width.extent.after(selection.keep) < 1:
            groups = shorten([name for name, _ in width.extent.pieces])
            raise InvalidArgumentError(
                f"selection would leave an axis of width 0 that is fed by group(s) {groups}; keep a channel there"
            )


def check_scores(group: ChannelGroup, given: Any, what: str) -> np.ndarray:
    """Returns the scores of a group as a float array (num_channels,); raises InvalidArgumentError where they are none."""
    try:
        array = np.asarray(given)
        scores = array.astype(float) if array.dtype.kind in "biufV" else None
    except Exception:  # ragged, or of a class that is no array
        scores = None
    if scores is None or scores.shape != (group.num_channels,) or not np.isfinite(scores).all():
        bad = scores is not None and scores.shape == (group.num_channels,)
        raise InvalidArgumentError(
            f"{what} must be {group.num_channels} finite numbers for group {group.name!r}, got {checks.shown(given)}"
            + (" with NaN or infinite values" if bad else "")
        )
    return scores


def shorten(names: Iterable[str], most: int = 5) -> str:
    """Lists the first names, for messages.

    Example:
        >>> shorten("abcdefg", most=2)
        'a, b, ... (7 in all)'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")

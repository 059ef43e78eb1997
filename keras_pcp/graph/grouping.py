"""Turns the notes of the rules into a channel graph. Channels that the same layers make become a group."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import (
    IDLE,
    ChannelGroup,
    CostTerm,
    Extent,
    Frozen,
    WeightInfo,
    WeightSlice,
    Width,
)
from keras_pcp.graph.labels import Classes
from keras_pcp.graph.notes import Index, Notes
from keras_pcp.graph.program import Program
from keras_pcp.graph.rules import CallSite
from keras_pcp.graph.trace import fingerprint


def grouped(program: Program, index: Index, notes: Notes) -> ChannelGraph:
    """Returns the channel graph of a program, given the notes of the rules.

    Raises:
        UnsupportedModelError: a rule does not mention a weight of its layer.
    """
    classes = notes.table.resolve()
    group_of, channel_of, names, sizes = _group_labels(notes, classes)
    _check_weights(index, notes, group_of)
    pieces = _Pieces(group_of, channel_of, names)
    slices: list[list[WeightSlice]] = [[] for _ in names]
    shapes = [[Extent(int(d)) for d in w.shape] for w in index.weights]
    for (weight, axis), (ids, role, part) in notes.bindings.items():
        variable = index.weights[weight]
        layer = index.owner[id(variable)]
        shapes[weight][axis] = Extent(len(ids), pieces.of(ids))
        for group, channels, positions in pieces.split(ids):
            slices[group].append(WeightSlice(weight, variable.path, layer, axis, role, part, channels, positions))
    inexact = np.zeros(len(names), bool)
    inexact[group_of[classes.inexact & (group_of >= 0)]] = True
    unowned = "" if program.opened.blocks else IDLE
    groups = {n: ChannelGroup(n, sizes[i], tuple(slices[i]), not inexact[i]) for i, n in enumerate(names)}
    return ChannelGraph(
        model_name=program.model.name,
        groups=groups,
        frozen=tuple(_frozen(program, notes, classes)),
        weights=tuple(
            WeightInfo(w.path, index.owner.get(id(w), unowned), _itemsize(w), tuple(shape))
            for w, shape in zip(index.weights, shapes, strict=True)
        ),
        widths=tuple(_all_widths(notes, pieces)),
        macs=tuple(_terms(program, notes, shapes)),
        notes=tuple(f"{text}; its channels are frozen" for text in notes.unknown.values()),
        blocks=program.opened.blocks,
        fingerprint=fingerprint(program.trace, index.weights),
    )


@dataclass(frozen=True, eq=False)
class Places:
    """Which channels lie where along the channel axis of a tensor; positions that no place has are fixed.

    Attributes:
        axis, size: the axis, and its length.
        places: (group name, channels, positions), once for each group found there.
    """

    axis: int
    size: int
    places: tuple[tuple[str, np.ndarray, np.ndarray], ...]


def places_in_tensors(notes: Notes) -> dict[int, Places]:
    """Returns {number of a tensor: what lies where}, for the tensors that have channels of groups."""
    group_of, channel_of, names, _ = _group_labels(notes, notes.table.resolve())
    pieces, found = _Pieces(group_of, channel_of, names), {}
    for tensor, labels in notes.labels.items():
        if labels is not None and (split := pieces.split(labels.ids)):
            found[tensor] = Places(labels.axis, len(labels), tuple((names[g], c, p) for g, c, p in split))
    return found


def _check_weights(index: Index, notes: Notes, group_of: np.ndarray) -> None:
    """Raises UnsupportedModelError if removable channels pass a layer whose rule does not mention all its weights."""
    accounted = {weight for weight, _ in notes.bindings} | notes.independent
    for site, labels in notes.ruled:
        weights = getattr(site.operation, "weights", ())
        forgotten = [w for w in weights if math.prod(w.shape) > 1 and index.weight.get(id(w)) not in accounted]
        if forgotten and any(x is not None and (group_of[x.ids] >= 0).any() for x in labels):
            variable = forgotten[0]
            raise UnsupportedModelError(
                f"the rule of {site.name} lets channels be removed but says nothing of the layer's weight "
                f"{variable.path!r} of shape {tuple(variable.shape)}. In the rule, call site.follow(weight, axis, ids, "
                "part) if it has a value for each channel, site.consume(weight, axis, ids) if it multiplies what is "
                "read from them, site.produce((weight, axis, part)) if it makes channels, or site.independent(weight)"
            )


def _terms(program: Program, notes: Notes, shapes: list[list[Extent]]) -> Iterable[CostTerm]:
    for site, factor, weight, axes in notes.costs:
        if factor != 0:
            why = _why_unknown(program, site) if math.isnan(factor) else ""
            yield CostTerm(site.layer, factor, tuple(shapes[weight][a] for a in axes), why)
    for name, why in notes.uncounted.items():
        yield CostTerm(name, math.nan, (), why)


def _why_unknown(program: Program, site: CallSite) -> str:
    """Returns why it is not known how many positions a call works on."""
    tensors = [program.trace.tensors[i] for i in program.trace.inputs]
    unknown = [f"{t.name!r} of shape {tuple(t.shape)}" for t in tensors if None in t.shape[1:]]
    if unknown:
        return f"the size of the model's input {' and '.join(unknown)} is not known"
    return f"{site.name} makes {' and '.join(map(str, site.output_shapes))}, of a size that is not known"


def _group_labels(notes: Notes, classes: Classes) -> tuple[np.ndarray, np.ndarray, list[str], list[int]]:
    """Returns group and channel number of every label (-1 if it has no group), and names and sizes of the groups.

    The channels of a group have the same makers. So channels that some layers make alone, and others only with more (as in
    zero-padded shortcuts), are a group of their own. They also lie on the same axes; axes with fixed positions do not count,
    because they cannot become empty. So it is enough that one channel of each group stays.
    """
    made = [np.unique(classes.root[ids[~classes.frozen[ids]]]) for _, ids in notes.sites]
    axes = [x.ids for x in notes.labels.values() if x is not None and not classes.frozen[x.ids].any()]
    kind, count = np.zeros(notes.table.count, int), 1
    for roots in (*made, *(np.unique(classes.root[ids]) for ids in axes)):
        before, place = np.unique(kind[roots], return_inverse=True)
        kind[roots] = count + place
        count += len(before)
    names: list[str] = []
    number = np.full(count, -1)
    for (layer, _), roots in zip(notes.sites, made, strict=True):
        for key in dict.fromkeys(kind[roots].tolist()):
            if number[key] < 0:
                number[key] = len(names)
                names.append(_unique(layer, names))
    group_of = np.where(classes.frozen, -1, number[kind[classes.root]])
    # Numbers within a group follow the order of the roots.
    roots = np.flatnonzero((classes.root == np.arange(notes.table.count)) & (group_of >= 0))
    order = roots[np.argsort(group_of[roots], kind="stable")]
    sizes = np.bincount(group_of[roots], minlength=len(names))
    channel = np.full(notes.table.count, -1)
    channel[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return group_of, channel[classes.root], names, sizes.tolist()


def _all_widths(notes: Notes, pieces: "_Pieces") -> Iterable[Width]:
    for (owner, index, path), (size, ids) in notes.widths.items():
        if found := pieces.of(ids):
            yield Width(owner, index, path, Extent(size, found))
    for tensor, labels in notes.labels.items():
        if labels is not None and (found := pieces.of(labels.ids)):
            positions = tuple(places for *_, places in pieces.split(labels.ids))
            yield Width("tensor", tensor, (labels.axis,), Extent(len(labels), found), positions)


def _frozen(program: Program, notes: Notes, classes: Classes) -> Iterable[Frozen]:
    for layer, ids in notes.sites:
        reasons = Counter(classes.reason(i) for i in ids[classes.frozen[ids]])
        for reason, number in reasons.items():
            yield Frozen(layer, number, reason)
    for name, text in notes.unknown.items():
        number = sum(int(w.shape[-1]) for w in getattr(_operation(program, name), "weights", ()) if len(w.shape) > 1)
        if number:
            yield Frozen(name, number, f"{text}: its own weights are left alone")


def _operation(program: Program, name: str) -> Any:
    return next(op for op in program.trace.operations if program.name_of(op) == name)


class _Pieces:
    """Splits label vectors by group."""

    def __init__(self, group_of: np.ndarray, channel_of: np.ndarray, names: list[str]):
        self.group_of, self.channel_of, self.names = group_of, channel_of, names

    def split(self, ids: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Returns (group, channels, positions) for each group found among `ids`."""
        groups = self.group_of[ids]
        found = []
        for group in np.unique(groups[groups >= 0]):
            positions = np.flatnonzero(groups == group)
            found.append((int(group), self.channel_of[ids[positions]], positions))
        return found

    def of(self, ids: np.ndarray) -> tuple[tuple[str, np.ndarray], ...]:
        return tuple((self.names[group], channels) for group, channels, _ in self.split(ids))


def _unique(name: str, taken: list[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}#{number}", number + 1
    return candidate


def _itemsize(variable: Any) -> int:
    return 2 if variable.dtype == "bfloat16" else np.dtype(variable.dtype).itemsize

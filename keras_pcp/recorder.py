"""Runs the rules over a trace, records what they say, and turns labels into groups."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_pcp.blocks import Opened
from keras_pcp.channels import (
    PRODUCE,
    ChannelGraph,
    ChannelGroup,
    CostTerm,
    Extent,
    Frozen,
    WeightInfo,
    WeightSlice,
    Width,
)
from keras_pcp.errors import UnsupportedModelError
from keras_pcp.labels import Classes, Labels, LabelTable, connected
from keras_pcp.rules import CallSite, elementwise, find_rule, labels_of_outputs
from keras_pcp.trace import Call, Trace


class GraphRecorder:
    """Implements `rules.Recorder` and collects what the rules say."""

    def __init__(self, model: keras.Model, traced: Trace, frozen_layers: set[str], opened: Opened):
        self.model, self.trace, self.frozen_layers, self.opened = model, traced, frozen_layers, opened
        self.weights = model.weights  # listing them anew takes time on a large model
        self.table = LabelTable()
        self.weight_index = {id(w): i for i, w in enumerate(self.weights)}
        self.operation_index = {id(op): i for i, op in enumerate(traced.operations)}
        self.labels: dict[int, Labels | None] = {}
        self.produced: dict[tuple[int, int], np.ndarray] = {}
        self.sites: list[tuple[str, np.ndarray]] = []
        self.bindings: dict[tuple[int, int], tuple[np.ndarray, str, str]] = {}
        self.widths: dict[tuple, tuple[int, np.ndarray]] = {}
        self.named: dict[tuple, tuple[np.ndarray, dict[int, CallSite]]] = {}
        self.uses: list[tuple[str, int, float]] = []
        self.products: list[tuple[str, float, int, tuple[int, ...]]] = []
        self.unknown: dict[str, str] = {}
        self.uncounted: dict[str, None] = {}
        self.owner = {id(w): op.name for op in traced.operations if not isinstance(op, keras.Model)
                      for w in getattr(op, "weights", ())}  # fmt: skip

    def run(self) -> None:
        for index, call in enumerate(self.trace.calls):
            inputs = tuple(self.labels.get(i) for i in call.inputs)
            outputs = inputs if call.operation is None else self.apply(call, index, inputs)
            for tensor, labels in zip(call.outputs, outputs, strict=True):
                self.set_labels(tensor, labels)
        self.freeze_half_shared()
        for tensor in self.trace.outputs:
            labels = self.labels.get(tensor)
            if labels is not None:
                self.table.freeze(labels.ids, "output of the model")

    def freeze_half_shared(self) -> None:
        """Freezes what only some calls of a shared layer named: to the other calls these positions are fixed."""
        calls = Counter(id(call.operation) for call in self.trace.calls)
        for ids, sites in self.named.values():
            users = {id(site.operation): site for site in sites.values()}
            if len(sites) < sum(calls[user] for user in users):
                self.table.freeze(ids, f"{next(iter(users.values())).name} is shared with a call on fixed channels")

    def name(self, site: CallSite, key: tuple, ids: np.ndarray) -> None:
        """Notes that a call named the channels of a weight axis or a width; several calls must name the same ones."""
        known, sites = self.named.setdefault(key, (ids, {}))
        sites[site.index] = site
        reason = f"{site.name} is shared with a call on fixed channels"
        if len(known) == len(ids):
            self.tie(known, ids, reason)
        else:
            self.freeze(np.concatenate([known, ids]), reason)

    def set_labels(self, tensor: int, labels: Labels | None) -> None:
        """Labels a tensor; a tensor inside a nested model that is called again gets both sets, tied."""
        if labels is not None and len(labels) != self.trace.tensors[tensor].shape[labels.axis]:
            raise UnsupportedModelError(
                f"a rule gave {len(labels)} channels on axis {labels.axis} to a tensor of shape "
                f"{self.trace.tensors[tensor].shape}, named {self.trace.tensors[tensor].name!r}"
            )
        if tensor not in self.labels:
            self.labels[tensor] = labels
            return
        old = self.labels[tensor]
        reason = "a nested model is called on channels that cannot be removed alike"
        if labels is None or old is None or labels.axis != old.axis:
            for x in (labels, old):
                if x is not None:
                    self.table.freeze(x.ids, reason)
        else:
            self.table.tie(old.ids, labels.ids, reason)

    def apply(self, call: Call, index: int, inputs: tuple[Labels | None, ...]) -> Sequence[Labels | None]:
        tensors = tuple(self.trace.tensors[i] for i in call.inputs)
        shapes = tuple(tuple(self.trace.tensors[i].shape) for i in call.outputs)
        site = CallSite(self, call.operation, index, inputs, tuple(tuple(t.shape) for t in tensors), shapes,
                        call.args, call.kwargs, tensors)  # fmt: skip
        if getattr(call.operation, "quantization_mode", None) is not None:
            raise UnsupportedModelError(f"layer {site.name} is quantized; prune first, then quantize")
        rule, why = find_rule(call.operation), "has no rule"
        if id(call.operation) in self.opened.inert:
            rule = elementwise.same
        if id(call.operation) in self.opened.closed:
            why += f", and cannot be opened: {self.opened.closed[id(call.operation)]}"
        if rule is not None:
            try:
                return labels_of_outputs(site, rule(site))
            except elementwise.UnknownFunction as error:
                why = f"uses the function {error}"
        elif all(labels is None for labels in inputs) and not getattr(call.operation, "weights", ()):
            return [None] * len(shapes)
        self.unknown.setdefault(call.operation.name, f"{site.name} {why}")
        for labels in inputs:
            site.freeze(labels, f"{why}, so what it does with them is unknown")
        for key, (ids, _, _) in self.bindings.items():
            if self.owner.get(id(self.weights[key[0]])) == call.operation.name:
                self.table.freeze(ids, f"{site.name} {why}")
        if any(len(w.shape) > 1 for w in getattr(call.operation, "weights", ())):
            self.uncounted[call.operation.name] = None
        return [None] * len(shapes)

    def index_of(self, site: CallSite, variable: Any) -> int:
        if id(variable) not in self.weight_index:
            raise UnsupportedModelError(
                f"layer {site.name} computes with a weight that is not its own variable (LoRA or quantized?); "
                "prune first, then add LoRA or quantize"
            )
        return self.weight_index[id(variable)]

    def produce(self, site: CallSite, weights: Sequence[tuple[Any, int, str]], repeat: int) -> np.ndarray:
        variable, axis, _ = weights[0]
        key = (self.index_of(site, variable), axis % len(variable.shape))
        if key not in self.produced:
            ids = self.table.create(variable.shape[axis] // repeat)
            ids = np.tile(ids, repeat) if repeat > 1 else ids
            self.sites.append((site.operation.name, ids))
            self.produced[key] = ids
            if site.operation.name in self.frozen_layers:
                self.table.freeze(ids, "named in frozen_layers")
        for variable, axis, part in weights:
            self.bind(site, variable, axis, self.produced[key], PRODUCE, part)
        return self.produced[key]

    def bind(self, site: CallSite, variable: Any, axis: int, ids: np.ndarray, role: str, part: str) -> None:
        weight = self.index_of(site, variable)
        key = (weight, axis % len(variable.shape))
        if len(ids) != variable.shape[axis]:
            raise UnsupportedModelError(
                f"rule of {site.name}: axis {axis} of {variable.path} has {variable.shape[axis]} positions, "
                f"but {len(ids)} channels were named for it"
            )
        self.bindings.setdefault(key, (ids, role, part))
        self.name(site, key, ids)

    def width(self, site: CallSite, owner: str, path: tuple, size: int, ids: np.ndarray) -> None:
        index = self.operation_index[id(site.operation)] if owner == "operation" else site.index
        key = (owner, index, path)
        self.widths.setdefault(key, (size, ids))
        if owner == "operation":
            self.name(site, key, ids)

    def macs(self, site: CallSite, variable: Any, uses: float) -> None:
        self.uses.append((site.operation.name, self.index_of(site, variable), uses))

    def macs_product(self, site: CallSite, factor: float, variable: Any, axes: Sequence[int]) -> None:
        self.products.append((site.operation.name, factor, self.index_of(site, variable), tuple(axes)))

    def tie(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        self.table.tie(a, b, reason)

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        self.table.freeze(ids, reason)

    def mark_inexact(self, ids: np.ndarray, reason: str) -> None:
        self.table.mark_inexact(ids, reason)

    def finish(self) -> ChannelGraph:
        classes = self.table.resolve()
        group_of, channel_of, names, sizes = self.group_labels(classes)
        pieces = _Pieces(group_of, channel_of, names)
        slices: list[list[WeightSlice]] = [[] for _ in names]
        shapes = [[Extent(int(d)) for d in w.shape] for w in self.weights]
        for (weight, axis), (ids, role, part) in self.bindings.items():
            variable = self.weights[weight]
            layer = self.owner[id(variable)]
            shapes[weight][axis] = Extent(len(ids), pieces.of(ids))
            for group, channels, positions in pieces.split(ids):
                slices[group].append(WeightSlice(weight, variable.path, layer, axis, role, part, channels, positions))
        inexact = np.zeros(len(names), bool)
        inexact[group_of[classes.inexact & (group_of >= 0)]] = True
        widths = tuple(self.all_widths(pieces))
        parts = _parts(widths, dict(zip(names, sizes, strict=True)))
        unowned = "" if self.opened.blocks else self.model.name
        groups = {
            n: ChannelGroup(n, sizes[i], tuple(slices[i]), not inexact[i], tuple(parts.get(n, {}).values()))
            for i, n in enumerate(names)
        }
        return ChannelGraph(
            model_name=self.model.name,
            groups=groups,
            frozen=tuple(self.frozen(classes)),
            weights=tuple(
                WeightInfo(w.path, self.owner.get(id(w), unowned), _itemsize(w), tuple(shape))
                for w, shape in zip(self.weights, shapes, strict=True)
            ),
            widths=widths,
            macs=tuple(
                [CostTerm(name, uses, tuple(shapes[w])) for name, w, uses in self.uses]
                + [CostTerm(name, f, tuple(shapes[w][a] for a in axes)) for name, f, w, axes in self.products]
            ),
            notes=tuple(f"{text}; its channels are frozen" for text in self.unknown.values()),
            uncounted=tuple(self.uncounted),
            blocks=self.opened.blocks,
        )

    def group_labels(self, classes: Classes) -> tuple[np.ndarray, np.ndarray, list[str], list[int]]:
        """Gives every label its group and channel number; -1 where it is frozen."""
        firsts = []
        for _, ids in self.sites:
            roots = np.unique(classes.root[ids[~classes.frozen[ids]]])
            firsts.append((roots[:1].repeat(len(roots)), roots))
        component = connected(self.table.count, firsts)[classes.root]
        group_of = np.full(self.table.count, -1)
        channel_of = np.full(self.table.count, -1)
        names, sizes, seen = [], [], {}
        for (layer, _), (first, roots) in zip(self.sites, firsts, strict=True):
            if len(roots) and component[first[0]] not in seen:
                seen[component[first[0]]] = len(names)
                names.append(_unique(layer, names))
        free = np.flatnonzero(~classes.frozen)
        by_component = np.full(self.table.count, -1)
        by_component[list(seen)] = list(seen.values())
        group_of[free] = by_component[component[free]]
        # Numbers within a group follow the order of the roots.
        roots = np.flatnonzero((classes.root == np.arange(self.table.count)) & (group_of >= 0))
        order = roots[np.argsort(group_of[roots], kind="stable")]
        sizes = np.bincount(group_of[roots], minlength=len(names))
        number = np.full(self.table.count, -1)
        number[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        channel_of[free] = number[classes.root[free]]
        return group_of, channel_of, names, sizes.tolist()

    def all_widths(self, pieces: "_Pieces") -> Iterable[Width]:
        for (owner, index, path), (size, ids) in self.widths.items():
            if found := pieces.of(ids):
                yield Width(owner, index, path, Extent(size, found))
        for tensor, labels in self.labels.items():
            if labels is not None and (found := pieces.of(labels.ids)):
                yield Width("tensor", tensor, (labels.axis,), Extent(len(labels), found))

    def frozen(self, classes: Classes) -> Iterable[Frozen]:
        for layer, ids in self.sites:
            reasons = Counter(classes.reason(i) for i in ids[classes.frozen[ids]])
            for reason, count in reasons.items():
                yield Frozen(layer, count, reason)
        for name, text in self.unknown.items():
            count = sum(int(w.shape[-1]) for w in getattr(self.operation(name), "weights", ()) if len(w.shape) > 1)
            if count:
                yield Frozen(name, count, f"{text}: its own weights are left alone")

    def operation(self, name: str) -> Any:
        return next(op for op in self.trace.operations if op.name == name)


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


def _parts(widths: Iterable[Width], sizes: dict[str, int]) -> dict[str, dict[bytes, np.ndarray]]:
    """Finds the axes that hold nothing but a part of one group: {group: {key: channels}}."""
    found: dict[str, dict[bytes, np.ndarray]] = {}
    for width in widths:
        if width.owner == "tensor" and len(width.extent.pieces) == 1:
            name, channels = width.extent.pieces[0]
            part = np.unique(channels)
            if len(channels) == width.extent.size and len(part) < sizes[name]:
                found.setdefault(name, {})[part.tobytes()] = part
    return found


def _unique(name: str, taken: list[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}#{number}", number + 1
    return candidate


def _itemsize(variable: Any) -> int:
    return 2 if variable.dtype == "bfloat16" else np.dtype(variable.dtype).itemsize

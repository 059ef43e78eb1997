"""Runs the rules over a trace, records what they say, and turns labels into groups."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_pcp.errors import PruningError, UnsupportedModelError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import (
    IDLE,
    PRODUCE,
    ChannelGroup,
    CostTerm,
    Extent,
    Frozen,
    WeightInfo,
    WeightSlice,
    Width,
)
from keras_pcp.graph.counting import count
from keras_pcp.graph.labels import Classes, Labels, LabelTable, connected
from keras_pcp.graph.program import Program
from keras_pcp.graph.rules import CallSite, elementwise, find_rule, labels_of_outputs
from keras_pcp.graph.sizes import sized_calls
from keras_pcp.graph.trace import Call, fingerprint


class GraphRecorder:
    """Implements `rules.Recorder` and collects what the rules say."""

    def __init__(self, program: Program, frozen_layers: set[str]):
        self.program, self.trace, self.opened = program, program.trace, program.opened
        self.frozen_layers = frozen_layers
        self.weights = program.model.weights  # listing them anew takes time on a large model
        self.table = LabelTable()
        self.weight_index = {id(w): i for i, w in enumerate(self.weights)}
        self.operation_index = {id(op): i for i, op in enumerate(self.trace.operations)}
        self.labels: dict[int, Labels | None] = {}
        self.produced: dict[tuple[int, int], np.ndarray] = {}
        self.sites: list[tuple[str, np.ndarray]] = []
        self.bindings: dict[tuple[int, int], tuple[np.ndarray, str, str]] = {}
        self.widths: dict[tuple, tuple[int, np.ndarray]] = {}
        self.named: dict[tuple, tuple[np.ndarray, dict[int, CallSite]]] = {}
        self.independent_weights: set[int] = set()
        self.ruled: list[tuple[CallSite, tuple[Labels | None, ...]]] = []
        self.sized = sized_calls(self.trace)
        self.costs: list[tuple[CallSite, float, int, tuple[int, ...]]] = []
        self.unknown: dict[str, str] = {}
        self.uncounted: dict[str, str] = {}
        self.owner = {
            id(w): program.name_of(op)
            for op in self.trace.operations
            if not isinstance(op, keras.Model)
            for w in getattr(op, "weights", ())
        }

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
        site = CallSite(
            self,
            call.operation,
            self.program.name_of(call.operation),
            index,
            inputs,
            tuple(tuple(t.shape) for t in tensors),
            shapes,
            call.args,
            call.kwargs,
            tensors,
        )
        if getattr(call.operation, "quantization_mode", None) is not None:
            raise UnsupportedModelError(f"layer {site.name} is quantized; prune first, then quantize")
        rule, why, before = find_rule(call.operation), "has no rule", len(self.costs)
        if id(call.operation) in self.opened.inert:
            rule = elementwise.same
        if id(call.operation) in self.opened.closed:
            why += f", and cannot be opened: {self.opened.closed[id(call.operation)]}"
        outputs = None
        if rule is not None:
            try:
                outputs = labels_of_outputs(site, rule(site))
                self.ruled.append((site, (*inputs, *outputs)))
            except elementwise.UnknownFunction as error:
                why = f"uses the function {error}"
            except PruningError:
                raise
            except Exception as error:  # whatever a custom rule raises
                raise UnsupportedModelError(
                    f"the rule of {site.name} fails with {type(error).__name__}: {error} (site.inputs holds None for an "
                    "input without channels that can go; keras_pcp.testing.check_rule tries a rule)"
                ) from error
        elif all(labels is None for labels in inputs) and not getattr(call.operation, "weights", ()):
            outputs = [None] * len(shapes)
        self.complete_cost(site, before, why if outputs is None else None)
        return self.kept(site, why) if outputs is None else outputs

    def kept(self, site: CallSite, why: str) -> list[None]:
        """Freezes what a call reads and makes that no rule follows."""
        self.unknown.setdefault(site.layer, f"{site.name} {why}")
        for labels in site.inputs:
            site.freeze(labels, f"{why}, so what it does with them is unknown")
        for key, (ids, _, _) in self.bindings.items():
            if self.owner.get(id(self.weights[key[0]])) == site.layer:
                self.table.freeze(ids, f"{site.name} {why}")
        return [None] * len(site.output_shapes)

    def complete_cost(self, site: CallSite, before: int, why: str | None) -> None:
        """Completes what a rule has said of the cost of a call since `before`; `why` there is no rule, if so.

        A cost is that of the sizes that the call is made with. What has a kernel has a cost: if none is known for it, the
        cost of the layer is unknown, not 0.
        """
        sized = self.sized.get(site.index)
        if sized is not None or why is not None:
            del self.costs[before:]
            count(site, sized)
        counted = {weight for _, _, weight, _ in self.costs[before:]}
        for variable in getattr(site.operation, "weights", ()):
            if len(variable.shape) > 1 and self.weight_index.get(id(variable)) not in counted:
                rule = (
                    f"its rule does not say how often it uses {variable.path} {tuple(variable.shape)}; call site.macs"
                )
                self.uncounted.setdefault(site.layer, f"{site.name} {why}" if why else f"{site.name}: {rule}")

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
            self.sites.append((site.layer, ids))
            self.produced[key] = ids
            if site.layer in self.frozen_layers:
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

    def independent(self, site: CallSite, variable: Any) -> None:
        self.independent_weights.add(self.index_of(site, variable))

    def macs(self, site: CallSite, variable: Any, uses: float) -> None:
        self.costs.append((site, uses, self.index_of(site, variable), tuple(range(len(variable.shape)))))

    def macs_product(self, site: CallSite, factor: float, variable: Any, axes: Sequence[int]) -> None:
        self.costs.append((site, factor, self.index_of(site, variable), tuple(axes)))

    def tie(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        self.table.tie(a, b, reason)

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        self.table.freeze(ids, reason)

    def mark_inexact(self, ids: np.ndarray, reason: str) -> None:
        self.table.mark_inexact(ids, reason)

    def finish(self) -> ChannelGraph:
        classes = self.table.resolve()
        group_of, channel_of, names, sizes = self.group_labels(classes)
        self.check_weights(group_of)
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
        unowned = "" if self.opened.blocks else IDLE
        groups = {
            n: ChannelGroup(n, sizes[i], tuple(slices[i]), not inexact[i], tuple(parts.get(n, {}).values()))
            for i, n in enumerate(names)
        }
        return ChannelGraph(
            model_name=self.program.model.name,
            groups=groups,
            frozen=tuple(self.frozen(classes)),
            weights=tuple(
                WeightInfo(w.path, self.owner.get(id(w), unowned), _itemsize(w), tuple(shape))
                for w, shape in zip(self.weights, shapes, strict=True)
            ),
            widths=widths,
            macs=tuple(self.terms(shapes)),
            notes=tuple(f"{text}; its channels are frozen" for text in self.unknown.values()),
            blocks=self.opened.blocks,
            fingerprint=fingerprint(self.trace, self.weights),
        )

    def check_weights(self, group_of: np.ndarray) -> None:
        """Raises if a rule lets channels that can go through its layer but does not account for one of the weights."""
        accounted = {weight for weight, _ in self.bindings} | self.independent_weights
        for site, labels in self.ruled:
            weights = getattr(site.operation, "weights", ())
            forgotten = [w for w in weights if math.prod(w.shape) > 1 and self.weight_index.get(id(w)) not in accounted]
            if forgotten and any(x is not None and (group_of[x.ids] >= 0).any() for x in labels):
                variable = forgotten[0]
                raise UnsupportedModelError(
                    f"the rule of {site.name} lets channels be removed but says nothing of the layer's weight "
                    f"{variable.path!r} of shape {tuple(variable.shape)}. In the rule, call site.follow(weight, axis, ids, "
                    "part) if it has a value for each channel, site.consume(weight, axis, ids) if it multiplies what is "
                    "read from them, site.produce((weight, axis, part)) if it makes channels, or site.independent(weight)"
                )

    def terms(self, shapes: list[list[Extent]]) -> Iterable[CostTerm]:
        for site, factor, weight, axes in self.costs:
            if factor != 0:
                why = self.why_unknown(site) if math.isnan(factor) else ""
                yield CostTerm(site.layer, factor, tuple(shapes[weight][a] for a in axes), why)
        for name, why in self.uncounted.items():
            yield CostTerm(name, math.nan, (), why)

    def why_unknown(self, site: CallSite) -> str:
        """Returns why the number of positions that a call works on is not known."""
        tensors = [self.trace.tensors[i] for i in self.trace.inputs]
        unknown = [f"{t.name!r} of shape {tuple(t.shape)}" for t in tensors if None in t.shape[1:]]
        if unknown:
            return f"the size of the model's input {' and '.join(unknown)} is not known"
        return f"{site.name} makes {' and '.join(map(str, site.output_shapes))}, of a size that is not known"

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
            for reason, number in reasons.items():
                yield Frozen(layer, number, reason)
        for name, text in self.unknown.items():
            number = sum(int(w.shape[-1]) for w in getattr(self.operation(name), "weights", ()) if len(w.shape) > 1)
            if number:
                yield Frozen(name, number, f"{text}: its own weights are left alone")

    def operation(self, name: str) -> Any:
        return next(op for op in self.trace.operations if self.program.name_of(op) == name)


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

"""Runs the rules over a program and records what they say."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_pcp.errors import PruningError, UnsupportedModelError
from keras_pcp.graph.channels import (
    PRODUCE,
)
from keras_pcp.graph.counting import count
from keras_pcp.graph.labels import Labels
from keras_pcp.graph.notes import Index, Notes
from keras_pcp.graph.program import Program
from keras_pcp.graph.rules import CallSite, elementwise, find_rule, labels_of_outputs
from keras_pcp.graph.sizes import sized_calls
from keras_pcp.graph.trace import Call


class GraphRecorder:
    """Implements `rules.Recorder`: records what the rules say."""

    def __init__(self, program: Program, frozen_layers: set[str]):
        self.program, self.frozen_layers = program, frozen_layers
        self.index, self.notes = Index.of(program), Notes()
        self.sized = sized_calls(program.trace)
        self.produced: dict[tuple[int, int], np.ndarray] = {}
        self.named: dict[tuple, tuple[np.ndarray, dict[int, CallSite]]] = {}

    def run(self) -> Notes:
        """Runs the rules of all calls, in order, and returns the notes."""
        for index, call in enumerate(self.program.trace.calls):
            inputs = tuple(self.notes.labels.get(i) for i in call.inputs)
            outputs = inputs if call.operation is None else self.apply(call, index, inputs)
            for tensor, labels in zip(call.outputs, outputs, strict=True):
                self.set_labels(tensor, labels)
        self.freeze_half_shared()
        for tensor in self.program.trace.outputs:
            labels = self.notes.labels.get(tensor)
            if labels is not None:
                self.notes.table.freeze(labels.ids, "output of the model")
        return self.notes

    def freeze_half_shared(self) -> None:
        """Freezes channels that only some calls of a shared layer named. The other calls need them to stay."""
        calls = Counter(id(call.operation) for call in self.program.trace.calls)
        for ids, sites in self.named.values():
            users = {id(site.operation): site for site in sites.values()}
            if len(sites) < sum(calls[user] for user in users):
                self.notes.table.freeze(
                    ids, f"{next(iter(users.values())).name} is shared with a call on fixed channels"
                )

    def name(self, site: CallSite, key: tuple, ids: np.ndarray) -> None:
        """Records that a call named the channels of a weight axis or a width. All calls must name the same ones."""
        known, sites = self.named.setdefault(key, (ids, {}))
        sites[site.index] = site
        reason = f"{site.name} is shared with a call on fixed channels"
        if len(known) == len(ids):
            self.tie(known, ids, reason)
        else:
            self.freeze(np.concatenate([known, ids]), reason)

    def set_labels(self, tensor: int, labels: Labels | None) -> None:
        """Labels a tensor. If a nested model is called again, its tensors get both sets of labels, tied."""
        if labels is not None and len(labels) != self.program.trace.tensors[tensor].shape[labels.axis]:
            raise UnsupportedModelError(
                f"a rule gave {len(labels)} channels on axis {labels.axis} to a tensor of shape "
                f"{self.program.trace.tensors[tensor].shape}, named {self.program.trace.tensors[tensor].name!r}"
            )
        if tensor not in self.notes.labels:
            self.notes.labels[tensor] = labels
            return
        old = self.notes.labels[tensor]
        reason = "a nested model is called on channels that cannot be removed alike"
        if labels is None or old is None or labels.axis != old.axis:
            for x in (labels, old):
                if x is not None:
                    self.notes.table.freeze(x.ids, reason)
        else:
            self.notes.table.tie(old.ids, labels.ids, reason)

    def apply(self, call: Call, index: int, inputs: tuple[Labels | None, ...]) -> Sequence[Labels | None]:
        tensors = tuple(self.program.trace.tensors[i] for i in call.inputs)
        shapes = tuple(tuple(self.program.trace.tensors[i].shape) for i in call.outputs)
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
        rule, why, before = find_rule(call.operation), "has no rule", len(self.notes.costs)
        if id(call.operation) in self.program.opened.inert:
            rule = elementwise.same
        if id(call.operation) in self.program.opened.closed:
            why += f", and cannot be opened: {self.program.opened.closed[id(call.operation)]}"
        outputs = None
        if rule is not None:
            try:
                outputs = labels_of_outputs(site, rule(site))
                self.notes.ruled.append((site, (*inputs, *outputs)))
            except elementwise.UnknownFunction as error:
                why = f"uses the function {error}"
            except PruningError:
                raise
            except Exception as error:  # whatever a custom rule raises
                raise UnsupportedModelError(
                    f"the rule of {site.name} fails with {type(error).__name__}: {error} (site.inputs holds None for an "
                    "input without removable channels; keras_pcp.testing.check_rule checks a rule)"
                ) from error
        elif all(labels is None for labels in inputs) and not getattr(call.operation, "weights", ()):
            outputs = [None] * len(shapes)
        self.complete_cost(site, before, why if outputs is None else None)
        return self.kept(site, why) if outputs is None else outputs

    def kept(self, site: CallSite, why: str) -> list[None]:
        """Freezes all channels that a call without a rule reads or makes."""
        self.notes.unknown.setdefault(site.layer, f"{site.name} {why}")
        for labels in site.inputs:
            site.freeze(labels, f"{why}, so what it does with them is unknown")
        for key, (ids, _, _) in self.notes.bindings.items():
            if self.index.owner.get(id(self.index.weights[key[0]])) == site.layer:
                self.notes.table.freeze(ids, f"{site.name} {why}")
        return [None] * len(site.output_shapes)

    def complete_cost(self, site: CallSite, before: int, why: str | None) -> None:
        """Completes the cost of a call, which a rule has recorded from index `before` on.

        `why` says why there is no rule, or is None. The cost is that of the sizes that the call is made with. A layer
        with a kernel has a cost: if none is known for the kernel, the cost of the layer is unknown, not 0.
        """
        sized = self.sized.get(site.index)
        if sized is not None or why is not None:
            del self.notes.costs[before:]
            count(site, sized)
        counted = {weight for _, _, weight, _ in self.notes.costs[before:]}
        for variable in getattr(site.operation, "weights", ()):
            if len(variable.shape) > 1 and self.index.weight.get(id(variable)) not in counted:
                rule = (
                    f"its rule does not say how often it uses {variable.path} {tuple(variable.shape)}; call site.macs"
                )
                self.notes.uncounted.setdefault(site.layer, f"{site.name} {why}" if why else f"{site.name}: {rule}")

    def index_of(self, site: CallSite, variable: Any) -> int:
        if id(variable) not in self.index.weight:
            raise UnsupportedModelError(
                f"layer {site.name} computes with a weight that is not its own variable (LoRA or quantized?); "
                "prune first, then add LoRA or quantize"
            )
        return self.index.weight[id(variable)]

    def produce(self, site: CallSite, weights: Sequence[tuple[Any, int, str]], repeat: int) -> np.ndarray:
        variable, axis, _ = weights[0]
        key = (self.index_of(site, variable), axis % len(variable.shape))
        if key not in self.produced:
            ids = self.notes.table.create(variable.shape[axis] // repeat)
            ids = np.tile(ids, repeat) if repeat > 1 else ids
            self.notes.sites.append((site.layer, ids))
            self.produced[key] = ids
            if site.layer in self.frozen_layers:
                self.notes.table.freeze(ids, "named in frozen_layers")
        for variable, axis, part in weights:
            self.bind(site, variable, axis, self.produced[key], PRODUCE, part)
        return self.produced[key]

    def constants(self, site: CallSite, size: int) -> np.ndarray:
        if id(site.operation) in self.program.opened.settled:
            return np.zeros(size, np.int64)
        return self.notes.table.create(size)

    def bind(self, site: CallSite, variable: Any, axis: int, ids: np.ndarray, role: str, part: str) -> None:
        weight = self.index_of(site, variable)
        key = (weight, axis % len(variable.shape))
        if len(ids) != variable.shape[axis]:
            raise UnsupportedModelError(
                f"rule of {site.name}: axis {axis} of {variable.path} has {variable.shape[axis]} positions, "
                f"but {len(ids)} channels were named for it"
            )
        self.notes.bindings.setdefault(key, (ids, role, part))
        self.name(site, key, ids)

    def width(self, site: CallSite, owner: str, path: tuple, size: int, ids: np.ndarray) -> None:
        index = self.index.operation[id(site.operation)] if owner == "operation" else site.index
        key = (owner, index, path)
        self.notes.widths.setdefault(key, (size, ids))
        if owner == "operation":
            self.name(site, key, ids)

    def independent(self, site: CallSite, variable: Any) -> None:
        self.notes.independent.add(self.index_of(site, variable))

    def macs(self, site: CallSite, variable: Any, uses: float) -> None:
        self.notes.costs.append((site, uses, self.index_of(site, variable), tuple(range(len(variable.shape)))))

    def macs_product(self, site: CallSite, factor: float, variable: Any, axes: Sequence[int]) -> None:
        self.notes.costs.append((site, factor, self.index_of(site, variable), tuple(axes)))

    def tie(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        self.notes.table.tie(a, b, reason)

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        self.notes.table.freeze(ids, reason)

    def mark_inexact(self, ids: np.ndarray, reason: str) -> None:
        self.notes.table.mark_inexact(ids, reason)

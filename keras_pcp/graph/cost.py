"""What a model costs under a selection, counted from the graph without building the smaller model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from keras_pcp.graph.channels import IDLE
from keras_pcp.graph.selection import Selection

if TYPE_CHECKING:
    from keras_pcp.graph.channel_graph import ChannelGraph
    from keras_pcp.graph.program import Program


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer: multiply-accumulates per sample (NaN if unknown), number of parameters, bytes of its weights."""

    macs: float
    params: int
    bytes: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model, total and by layer.

    Attributes:
        macs: multiply-accumulates of one sample in convolutions, dense, recurrent and attention layers; NaN if those of a
            layer are unknown. Biases, normalization, activations and raw operations are not counted, as is usual.
        params: number of weights, trainable or not. All of `model.weights` count, including weights that no call uses (for
            example those of a teacher that the model holds).
        bytes: bytes of the weights in their own dtypes.
        layers: the same by layer name. One line holds all weights that no call uses.
        uncounted: {name of a layer whose MACs are unknown: why}.
    """

    macs: float
    params: int
    bytes: int
    layers: Mapping[str, LayerCost] = field(repr=False)
    uncounted: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'layer':<32} {'MACs':>14} {'parameters':>12} {'bytes':>12}"]
        for name, c in self.layers.items():
            lines.append(f"{name[:32]:<32} {_shown(c.macs):>14} {c.params:>12,} {c.bytes:>12,}")
        lines.append(f"{'total':<32} {_shown(self.macs):>14} {self.params:>12,} {self.bytes:>12,}")
        return "\n".join([*lines, *self.notes()])

    def notes(self) -> list[str]:
        """Returns remarks on the figures: which costs are unknown, and how many weights no call uses."""
        found = [f"MACs of layer {name} unknown: {why}" for name, why in self.uncounted.items()]
        if IDLE in self.layers:
            found.append(
                f"no call of the model uses {self.layers[IDLE].params:,} of {self.params:,} parameters (does the model hold "
                "a teacher or a copy of itself?). They count because model.weights and saved files have them; pass "
                "deliver=keras.Model(model.inputs, model.outputs) to leave them out"
            )
        return found


def cost_of(graph: "ChannelGraph", selection: Selection | None = None) -> Cost:
    """Returns the cost under a selection that fits the graph; None removes nothing."""
    keep = {} if selection is None else selection.keep
    layers: dict[str, list] = {}
    for info in (info for info in graph.weights if info.layer):
        entry = layers.setdefault(info.layer, [0.0, 0, 0])
        size = math.prod(extent.after(keep) for extent in info.shape)
        entry[1] += size
        entry[2] += size * info.itemsize
    for term in graph.macs:
        entry = layers.setdefault(term.layer, [0.0, 0, 0])
        entry[0] += term.factor * math.prod(extent.after(keep) for extent in term.extents)
    costs = {name: LayerCost(*entry) for name, entry in layers.items()}
    totals = {k: sum(getattr(c, k) for c in costs.values()) for k in ("macs", "params", "bytes")}
    return Cost(**totals, layers=costs, uncounted={t.layer: t.why for t in graph.macs if math.isnan(t.factor)})


def _shown(macs: float) -> str:
    return "unknown" if math.isnan(macs) else f"{macs:,.0f}"


def call_macs(graph: "ChannelGraph", program: "Program") -> np.ndarray:
    """Returns the MACs of each call of a program for one sample; the calls of a layer share its MACs equally."""
    layers = cost_of(graph).layers
    names = [None if call.operation is None else program.name_of(call.operation) for call in program.trace.calls]
    return np.array([layers[n].macs / names.count(n) if n is not None and n in layers else 0.0 for n in names])


def freed_macs(graph: "ChannelGraph", name: str) -> np.ndarray:
    """Returns, for each channel of a group, the MACs of one sample that removing this channel alone would save."""
    count = graph[name].num_channels
    freed = np.zeros(count)
    for term in graph.macs:
        if all(n != name for e in term.extents for n, _ in e.pieces):
            continue  # an unknown cost that stays
        left = [e.size - sum(np.bincount(c, minlength=count) for n, c in e.pieces if n == name) for e in term.extents]
        freed += term.factor * (math.prod(e.size for e in term.extents) - math.prod(left))
    return freed

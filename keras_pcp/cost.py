"""What a model costs under a selection, counted from the graph without building the smaller model."""

import math
import numbers
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import keras
import numpy as np

from keras_pcp import checks
from keras_pcp.channels import IDLE, ChannelGraph, Selection, check_selection, shorten
from keras_pcp.errors import InvalidArgumentError, LimitError
from keras_pcp.graph import build_graph
from keras_pcp.trace import Trace


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer: multiply-accumulates per sample (NaN if not known), number of parameters, bytes of its weights."""

    macs: float
    params: int
    bytes: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model, total and by layer.

    Attributes:
        macs: multiply-accumulates of one sample in convolutions, dense, recurrent and attention layers; NaN if those of a
            layer are not known. Biases, normalization, activations and raw operations are not counted, as is usual.
        params: number of weights, trainable or not: all of `model.weights`, also those that no call uses, such as those of
            a teacher that the model holds.
        bytes: bytes of the weights in their own dtypes.
        layers: the same by layer name; weights that no call uses stand together in one line.
        uncounted: {name of a layer whose MACs are not known: why}.
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
        """Returns what a reader of the figures has to know: which costs are unknown, and which weights no call uses."""
        found = [f"MACs of layer {name} unknown: {why}" for name, why in self.uncounted.items()]
        if IDLE in self.layers:
            found.append(
                f"{self.layers[IDLE].params:,} of {self.params:,} parameters are used by no call of the model (a teacher or "
                "a copy of the model that it holds?); they count because model.weights and saved files have them, unless "
                "deliver is given, such as deliver=keras.Model(model.inputs, model.outputs)"
            )
        return found


def count_cost(model_or_graph: keras.Model | ChannelGraph, selection: Selection | None = None) -> Cost:
    """Counts multiply-accumulates, parameters and bytes.

    Args:
        model_or_graph: a model, or the graph of one (no model is built for a selection).
        selection: channels to leave out; None counts the model as it is.

    Returns:
        A `Cost`. For a selection it equals the cost of the model that `prune_model` returns.

    Raises:
        UnsupportedModelError: the model has no functional graph.
        InvalidArgumentError: the selection does not fit.

    Example:
        >>> import keras, keras_pcp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 3, padding="same")(x)
        >>> cost = keras_pcp.count_cost(keras.Model(x, keras.layers.Dense(10)(keras.layers.Flatten()(y))))
        >>> cost.macs, cost.params                      # 8*8*16 * 3*3*3 + 1024*10
        (37888.0, 10698)
    """
    graph = model_or_graph
    if not isinstance(graph, ChannelGraph):
        checks.model("model_or_graph", graph)
        graph = build_graph(graph, on_unknown="freeze")
    selection = Selection() if selection is None else selection
    check_selection(graph, selection)
    return _count(graph, selection)


def _count(graph: ChannelGraph, selection: Selection) -> Cost:
    keep = selection.keep
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
    totals = [sum(getattr(c, k) for c in costs.values()) for k in ("macs", "params", "bytes")]
    return Cost(*totals, layers=costs, uncounted={t.layer: t.why for t in graph.macs if math.isnan(t.factor)})


def _shown(macs: float) -> str:
    return "unknown" if math.isnan(macs) else f"{macs:,.0f}"


def call_macs(graph: ChannelGraph, traced: Trace) -> np.ndarray:
    """Returns, for each call of the model's trace, its MACs for one sample; those of a layer are shared by its calls."""
    layers = _count(graph, Selection()).layers
    names = [getattr(call.operation, "name", None) for call in traced.calls]
    return np.array([layers[n].macs / names.count(n) if n in layers else 0.0 for n in names])


def freed_macs(graph: ChannelGraph, name: str) -> np.ndarray:
    """Returns, for each channel of a group, the MACs of one sample that removing this channel alone would save."""
    count = graph[name].num_channels
    freed = np.zeros(count)
    for term in graph.macs:
        if all(n != name for e in term.extents for n, _ in e.pieces):
            continue  # an unknown cost that stays
        left = [e.size - sum(np.bincount(c, minlength=count) for n, c in e.pieces if n == name) for e in term.extents]
        freed += term.factor * (math.prod(e.size for e in term.extents) - math.prod(left))
    return freed


@dataclass(frozen=True)
class Limits:
    """Upper bounds that all must hold: a float in (0, 1) is a fraction of the unpruned model, an int is absolute."""

    max_macs: float | int | None = None
    max_params: float | int | None = None
    max_bytes: float | int | None = None

    def __post_init__(self):
        if all(v is None for v in self._values().values()):
            raise InvalidArgumentError("no limit given: pass max_macs, max_params or max_bytes")
        for name, value in self._values().items():
            if value is not None:
                object.__setattr__(self, name, _limit(name, value))

    def _values(self) -> dict[str, float | int | None]:
        return {"max_macs": self.max_macs, "max_params": self.max_params, "max_bytes": self.max_bytes}

    def absolute(self, full: Cost) -> dict[str, float]:
        """Returns {"macs": bound, ...} for the limits that are set, given the cost of the unpruned model.

        Raises:
            LimitError: MACs are limited, but those of a layer are not known.
        """
        bounds = {k[4:]: v for k, v in self._values().items() if v is not None}
        if "macs" in bounds and full.uncounted:
            reasons: dict[str, list[str]] = {}
            for name, why in full.uncounted.items():
                reasons.setdefault(why, []).append(name)
            layers = "; ".join(f"{shorten(names)}: {why}" for why, names in list(reasons.items())[:5])
            raise LimitError(
                f"max_macs needs the multiply-accumulates (MACs) of every layer, but those of {len(full.uncounted)} are "
                f"unknown ({layers}). Give the model's inputs fixed sizes; for a layer, let its rule count them "
                "(keras_pcp.register_rule, site.macs); or limit max_params"
            )
        if "macs" in bounds and full.macs == 0:
            raise LimitError(
                "max_macs needs a model with multiply-accumulates, and this one has none; limit max_params"
            )
        return {k: v * getattr(full, k) if isinstance(v, float) else float(v) for k, v in bounds.items()}


def _limit(name: str, value: float | int) -> float | int:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    whole = number and isinstance(value, numbers.Integral)
    if not number or not (1 <= value < sys.float_info.max if whole else 0 < value < 1):
        expected = "a float in (0, 1), a fraction of the unpruned model, or a positive int"
        raise checks.refusal(name, expected, value)
    return int(value) if whole else float(value)


def progress(cost: Cost, full: Cost, bounds: Mapping[str, float]) -> float:
    """Returns how far pruning has come: 0 for the unpruned model, 1 or more when every bound holds."""
    return min(
        1.0 if bound >= getattr(full, k) else (getattr(full, k) - getattr(cost, k)) / (getattr(full, k) - bound)
        for k, bound in bounds.items()
    )


def check_reachable(graph: ChannelGraph, floor: Selection, bounds: Mapping[str, float]) -> None:
    """Raises LimitError if even `floor`, the smallest selection allowed, misses a bound."""
    least, full = _count(graph, floor), _count(graph, Selection())
    for name, bound in bounds.items():
        if getattr(least, name) > bound:
            frozen = "; ".join(f"{f.layer} ({f.reason})" for f in graph.frozen[:5]) or "nothing"
            raise LimitError(
                f"{name} cannot get below {getattr(least, name):,.0f} "
                f"({getattr(least, name) / getattr(full, name):.3f} of the unpruned model), but the limit is "
                f"{bound:,.0f} ({bound / getattr(full, name):.3f}). Frozen: {frozen}"
                + "".join(f". {note}" for note in full.notes() if IDLE in full.layers and name != "macs")
            )

"""Limits on the cost of a model, the progress of pruning towards them, and whether they can be reached."""

import numbers
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from keras_pcp.errors import InvalidArgumentError, LimitError
from keras_pcp.graph.channel_graph import ChannelGraph, shorten
from keras_pcp.graph.channels import IDLE
from keras_pcp.graph.cost import Cost, cost_of
from keras_pcp.graph.selection import Selection
from keras_pcp.support import checks


@dataclass(frozen=True)
class Limits:
    """Upper bounds, which must all hold. A float in (0, 1) is a fraction of the unpruned model; an int is absolute."""

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
        """Returns {"macs": bound, ...} for the limits that are set; `full` is the cost of the unpruned model.

        Raises:
            LimitError: MACs are limited, but those of a layer are unknown.
        """
        bounds = {k[4:]: v for k, v in self._values().items() if v is not None}
        if "macs" in bounds and full.uncounted:
            reasons: dict[str, list[str]] = {}
            for name, why in full.uncounted.items():
                reasons.setdefault(why, []).append(name)
            layers = "; ".join(f"{shorten(names)}: {why}" for why, names in list(reasons.items())[:5])
            raise LimitError(
                f"max_macs needs the multiply-accumulates (MACs) of every layer, but those of {len(full.uncounted)} are "
                f"unknown ({layers}). Give the model's inputs fixed sizes, count the layer's MACs in its rule "
                "(keras_pcp.register_rule, site.macs), or limit max_params"
            )
        if "macs" in bounds and full.macs == 0:
            raise LimitError(
                "max_macs needs a model with multiply-accumulates, but this model has none; limit max_params"
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
    """Returns the progress of pruning: 0 for the unpruned model, 1 or more when every bound holds."""
    return min(
        1.0 if bound >= getattr(full, k) else (getattr(full, k) - getattr(cost, k)) / (getattr(full, k) - bound)
        for k, bound in bounds.items()
    )


def check_reachable(graph: ChannelGraph, floor: Selection, bounds: Mapping[str, float]) -> None:
    """Raises LimitError if even `floor`, the smallest allowed selection, exceeds a bound."""
    least, full = cost_of(graph, floor), cost_of(graph, Selection())
    for name, bound in bounds.items():
        if getattr(least, name) > bound:
            frozen = "; ".join(f"{f.layer} ({f.reason})" for f in graph.frozen[:5]) or "nothing"
            raise LimitError(
                f"{name} cannot get below {getattr(least, name):,.0f} "
                f"({getattr(least, name) / getattr(full, name):.3f} of the unpruned model), but the limit is "
                f"{bound:,.0f} ({bound / getattr(full, name):.3f}). Frozen: {frozen}"
                + "".join(f". {note}" for note in full.notes() if IDLE in full.layers and name != "macs")
            )


def holds(graph: ChannelGraph, selection: Selection, bounds: Mapping[str, float]) -> bool:
    """Returns whether the cost under a selection exceeds no bound."""
    cost = cost_of(graph, selection)
    return all(getattr(cost, k) <= bound for k, bound in bounds.items())

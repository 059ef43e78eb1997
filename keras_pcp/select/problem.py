"""The goal of pruning: a channel graph, limits on the cost of its model, and the cost of the unpruned model."""

import numbers
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from keras_pcp.errors import InvalidArgumentError, LimitError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import IDLE
from keras_pcp.graph.cost import Cost, cost_of
from keras_pcp.graph.selection import Selection
from keras_pcp.support import checks
from keras_pcp.support.text import shorten

# What can be limited: an attribute of `Cost` (the option is called `max_...`), and its name in messages.
LIMITED = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}


@dataclass(frozen=True)
class Limits:
    """Upper bounds that must all hold. A float in (0, 1) is a fraction of the unpruned model; an int is absolute."""

    max_macs: float | int | None = None
    max_params: float | int | None = None
    max_bytes: float | int | None = None

    def __post_init__(self):
        if not self.given():
            options = [f"max_{name}" for name in LIMITED]
            raise InvalidArgumentError(f"no limit given: pass {', '.join(options[:-1])} or {options[-1]}")
        for name, value in self.given().items():
            object.__setattr__(self, f"max_{name}", _limit(f"max_{name}", value))

    def given(self) -> dict[str, float | int]:
        """Returns the limits that are set, by the names in `LIMITED`."""
        values = {name: getattr(self, f"max_{name}") for name in LIMITED}
        return {name: value for name, value in values.items() if value is not None}

    def absolute(self, full: Cost) -> dict[str, float]:
        """Returns {"macs": bound, ...} for the limits that are set; `full` is the cost of the unpruned model.

        Raises:
            LimitError: MACs are limited, but those of a layer are unknown.
        """
        if "macs" in self.given():
            _check_macs(full)
        return {k: v * getattr(full, k) if isinstance(v, float) else float(v) for k, v in self.given().items()}


def _limit(name: str, value: float | int) -> float | int:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    whole = number and isinstance(value, numbers.Integral)
    if not number or not (1 <= value < sys.float_info.max if whole else 0 < value < 1):
        expected = "a float in (0, 1), a fraction of the unpruned model, or a positive int"
        raise checks.refusal(name, expected, value)
    return int(value) if whole else float(value)


def _check_macs(full: Cost) -> None:
    if full.uncounted:
        reasons: dict[str, list[str]] = {}
        for name, why in full.uncounted.items():
            reasons.setdefault(why, []).append(name)
        layers = "; ".join(f"{shorten(names)}: {why}" for why, names in list(reasons.items())[:5])
        raise LimitError(
            f"max_macs needs the multiply-accumulates (MACs) of every layer, but those of {len(full.uncounted)} are "
            f"unknown ({layers}). Give the model's inputs fixed sizes, count the layer's MACs in its rule "
            "(keras_pcp.register_rule, site.macs), or limit max_params"
        )
    if full.macs == 0:
        raise LimitError("max_macs needs a model with multiply-accumulates, but this model has none; limit max_params")


@dataclass(frozen=True, eq=False)
class Problem:
    """A channel graph and what its model may cost. Selections use the channel numbers of the unpruned model.

    Attributes:
        graph: channel graph of the unpruned model.
        bounds: {"macs": upper bound, ...}, absolute, for the limits that are set.
        full: cost of the unpruned model.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(8, name="hidden")(x)))
        >>> problem = Problem.of(keras_pcp.build_graph(model), Limits(max_macs=0.5))
        >>> problem.progress(Selection({"hidden": np.arange(8) < 6})), problem.holds(Selection({"hidden": np.arange(8) < 4}))
        (0.5, True)
    """

    graph: ChannelGraph
    bounds: Mapping[str, float]
    full: Cost

    @classmethod
    def of(cls, graph: ChannelGraph, limits: Limits) -> "Problem":
        """Returns the problem for the graph of an unpruned model.

        Raises:
            LimitError: MACs are limited, but those of a layer are unknown.
        """
        full = cost_of(graph)
        return cls(graph, limits.absolute(full), full)

    @property
    def limits(self) -> Limits:
        """The bounds as absolute limits."""
        return Limits(**{f"max_{name}": max(1, int(bound)) for name, bound in self.bounds.items()})

    def toward(self, share: float) -> "Problem":
        """Returns the problem of going only a share of the way, in (0, 1]: its limits are that much looser.

        Example:
            >>> import keras, keras_pcp
            >>> x = keras.Input((4,))
            >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(8)(x)))
            >>> problem = Problem.of(keras_pcp.build_graph(model), Limits(max_macs=0.5))
            >>> problem.full.macs, problem.toward(0.5).bounds["macs"], problem.bounds["macs"]
            (48.0, 36.0, 24.0)
        """
        full = {name: getattr(self.full, name) for name in self.bounds}
        looser = {name: full[name] - share * (full[name] - bound) for name, bound in self.bounds.items()}
        return replace(self, bounds=looser)

    def cost(self, selection: Selection) -> Cost:
        """Returns what the model costs under a selection."""
        return cost_of(self.graph, selection)

    def progress(self, selection: Selection) -> float:
        """Returns the progress of pruning: 0 for the unpruned model, 1 or more when every bound holds."""
        return self.progress_at(self.cost(selection))

    def progress_at(self, cost: Cost) -> float:
        """Returns the progress of pruning for a model of a certain cost."""
        full = {name: getattr(self.full, name) for name in self.bounds}
        return min(
            1.0 if bound >= full[k] else (full[k] - getattr(cost, k)) / (full[k] - bound)
            for k, bound in self.bounds.items()
        )

    def holds(self, selection: Selection) -> bool:
        """Returns whether the cost under a selection exceeds no bound."""
        cost = self.cost(selection)
        return all(getattr(cost, k) <= bound for k, bound in self.bounds.items())

    def gain(self, here: Cost, there: Cost) -> float:
        """Returns the share of the whole way that leads from `here` to `there`: its mean over limits still exceeded."""
        shares = [
            (getattr(here, k) - getattr(there, k)) / (getattr(self.full, k) - bound)
            for k, bound in self.bounds.items()
            if getattr(here, k) > bound
        ]
        return float(np.mean(shares)) if shares else 0.0

    @property
    def largest_share(self) -> float:
        """The largest share of the unpruned cost, over all limits, that must be removed."""
        return 1 - min((bound / getattr(self.full, k) for k, bound in self.bounds.items()), default=1.0)

    def nothing_removed(self) -> Selection:
        """Returns the selection that keeps everything, with a mask for every group."""
        return Selection({g.name: np.ones(g.num_channels, bool) for g in self.graph})

    def check_reachable(self, floor: Selection) -> None:
        """Raises LimitError if even `floor`, the smallest allowed selection, exceeds a bound."""
        least, full = self.cost(floor), self.full
        for name, bound in self.bounds.items():
            if getattr(least, name) > bound:
                frozen = "; ".join(f"{f.layer} ({f.reason})" for f in self.graph.frozen[:5]) or "nothing"
                raise LimitError(
                    f"{name} cannot get below {getattr(least, name):,.0f} "
                    f"({getattr(least, name) / getattr(full, name):.3f} of the unpruned model), but the limit is "
                    f"{bound:,.0f} ({bound / getattr(full, name):.3f}). Frozen: {frozen}"
                    + "".join(f". {note}" for note in full.notes() if IDLE in full.layers and name != "macs")
                )

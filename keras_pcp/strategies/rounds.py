"""What strategies work on: measurements, attempts, rounds, and the state of a run, which becomes JSON and back."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.selection import Selection
from keras_pcp.strategies.racing import Measured, worth
from keras_pcp.support import checks


@dataclass(frozen=True)
class Evaluation:
    """What the model reaches on the validation samples: `metric`, what pruning goes by (higher = better), and `loss`."""

    metric: float
    loss: float


@dataclass(frozen=True)
class Attempt:
    """One attempt: what removing `removed` channels of a group costs.

    Attributes:
        group: name of the group.
        removed: channel numbers in the unpruned model.
        drop: fall of the metric since before the round; with `select="joint"` that includes the groups chosen before.
        loss_increase: rise of the loss, likewise.
        share: fraction of the validation samples on which it was measured in this round.
    """

    group: str
    removed: tuple[int, ...]
    drop: float
    loss_increase: float
    share: float = 1.0

    def rank(self) -> float:
        """Sort key: smaller is pruned first."""
        return worth(self.drop, self.loss_increase)


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        before: the evaluation before it.
        attempts: all of its attempts, best first (with `select="joint"` those of each group chosen, one after the other).
        chosen: names of the groups that were pruned.
        macs, params: cost of the model after it.
        widths: {group name: channels left after it}.
        step: training step at which it was run.
    """

    before: Evaluation
    attempts: tuple[Attempt, ...]
    chosen: tuple[str, ...]
    macs: float
    params: int
    widths: Mapping[str, int]
    step: int = 0


@dataclass(frozen=True)
class State:
    """Where a run stands: the selection so far, the rounds that led to it, and what is known of attempts.

    Example:
        >>> import numpy as np
        >>> state = State(Selection({"conv": np.array([True, False])}))
        >>> State.from_json(state.to_json()) == state
        True
    """

    selection: Selection
    rounds: tuple[Round, ...] = ()
    known: Mapping[str, Measured] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return {
            "selection": self.selection.to_json(),
            "rounds": [asdict(r) for r in self.rounds],
            "known": {name: measured.to_json() for name, measured in self.known.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "State":
        """Undoes `to_json`."""
        rounds = []
        for r in data["rounds"]:
            attempts = tuple(Attempt(**{**a, "removed": tuple(a["removed"])}) for a in r["attempts"])
            before = Evaluation(**r["before"])
            rounds.append(Round(**{**r, "before": before, "attempts": attempts, "chosen": tuple(r["chosen"])}))
        known = {name: Measured.from_json(m) for name, m in data["known"].items()}
        return cls(Selection.from_json(data["selection"]), tuple(rounds), known)


class Observation(Protocol):
    """What a strategy may ask about the running model. Selections are in the numbering of the unpruned model."""

    @property
    def parts(self) -> Sequence[slice]:
        """Slices that divide the validation samples, counted in chunks, for `compare`; none if they cannot be divided."""

    def scores(self) -> Sequence[Mapping[str, np.ndarray]]:
        """By each criterion, scores of the channels that are left, by group, higher = keep, in present numbering."""

    def evaluate(self, selection: Selection) -> Evaluation:
        """Evaluates the model as if pruned to `selection`, on all validation samples."""

    def compare(self, selections: Mapping[str, Selection], part: slice) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Evaluates the model as if pruned to each of the selections, on a part of the samples.

        Returns:
            Metric and loss of the model as it is, float array (chunks in `part`, 2), and by name the same shape: fall of
            the metric and rise of the loss.
        """


class Strategy(Protocol):
    """What the callback and `search_widths` run. Frozen dataclasses with these attributes and methods.

    Attributes:
        samples: validation samples to use; None: all.
        reestimate_batch_norm: whether statistics of batch normalization are re-estimated for the measurements of a round.
        seed: for the draw of samples and for random criteria.
        one_criterion: whether it goes by one criterion only; several are refused then.
    """

    samples: int | None
    reestimate_batch_norm: bool
    seed: int
    one_criterion: ClassVar[bool]

    def init(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> State:
        """Returns the state before the first round; raises LimitError if the bounds cannot be reached."""

    def rounds_needed(self, graph: ChannelGraph, bounds: Mapping[str, float]) -> int:
        """Returns about how many rounds it takes to reach the bounds."""

    def update(
        self, state: State, observation: Observation, graph: ChannelGraph, bounds: Mapping[str, float], target: float
    ) -> State:
        """Runs one round, meant to bring `keras_pcp.select.budget.progress` to about `target`."""


def check_strategy(value: Any) -> Any:
    """Returns a strategy; raises InvalidArgumentError for anything else."""
    methods = all(callable(getattr(value, name, None)) for name in ("init", "rounds_needed", "update"))
    attributes = all(hasattr(value, name) for name in ("samples", "reestimate_batch_norm", "seed", "one_criterion"))
    if isinstance(value, type) or not methods or not attributes:
        advice = "import those of others from keras_pcp, such as keras_pcp.strategies.OneShot()"
        raise checks.refusal("strategy", "a strategy such as keras_pcp.strategies.Progressive()", value, advice)
    return value


def check_options(strategy: Any, **allowed: Collection[str]) -> None:
    """Checks what all strategies have, and that each of the attributes named is one of what it may be.

    Raises:
        InvalidArgumentError: one is not.
    """
    checks.count("samples", strategy.samples, optional=True)
    checks.flag("reestimate_batch_norm", strategy.reestimate_batch_norm)
    checks.count("seed", strategy.seed, 0)
    for name, values in allowed.items():
        checks.choice(name, getattr(strategy, name), values)


def without(selection: Selection, name: str, removed: Collection[int]) -> Selection:
    """Returns the selection that removes some more channels of a group."""
    mask = selection.keep[name].copy()
    mask[list(removed)] = False
    return Selection({**selection.keep, name: mask})


def nothing_removed(graph: ChannelGraph) -> Selection:
    """Returns the selection that keeps everything, with a mask for every group."""
    return Selection({g.name: np.ones(g.num_channels, bool) for g in graph})

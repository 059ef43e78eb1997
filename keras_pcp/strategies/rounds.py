"""Records of what was measured and done: evaluations, attempts, rounds."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from keras_pcp.graph.selection import Selection
from keras_pcp.strategies.racing import worth

How = Literal["cut", "hold", "zero"]  # what happens to channels that are not kept, see `Action`


@dataclass(frozen=True)
class Evaluation:
    """Results on the validation samples: `metric`, the value that pruning compares (higher = better), and `loss`."""

    metric: float
    loss: float


@dataclass(frozen=True)
class Attempt:
    """One attempt: how much worse the model gets without some channels of a group.

    Attributes:
        group: name of the group.
        removed: channel numbers in the unpruned model.
        drop: fall of the metric since the start of the round, or in an earlier round if `share` is 0. With
            `select="joint"` it includes the groups chosen before.
        loss_increase: rise of the loss, likewise.
        share: fraction of the validation samples on which it was measured in this round; 0: it rested.
    """

    group: str
    removed: tuple[int, ...]
    drop: float
    loss_increase: float
    share: float = 1.0

    def rank(self) -> float:
        """Sort key: the smallest is pruned first."""
        return worth(self.drop, self.loss_increase)


@dataclass(frozen=True)
class Round:
    """One action of a strategy.

    Attributes:
        before: the evaluation before it, if the strategy made one.
        attempts: all of its attempts, best first. With `select="joint"` there is one such list for each choice of a
            group, one after the other.
        chosen: names of the groups whose channels changed.
        macs, params: cost of the model after it, without channels that are held at zero.
        widths: {group name: channels left after it}.
        how: `"cut"`, `"hold"` or `"zero"`, see `Action`.
        step: training step at which it was made.
    """

    before: Evaluation | None
    attempts: tuple[Attempt, ...]
    chosen: tuple[str, ...]
    macs: float
    params: int
    widths: Mapping[str, int]
    how: How = "cut"
    step: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Round":
        """Undoes `dataclasses.asdict`."""
        attempts = tuple(Attempt(**{**a, "removed": tuple(a["removed"])}) for a in data["attempts"])
        before = None if data["before"] is None else Evaluation(**data["before"])
        return cls(**{**data, "before": before, "attempts": attempts, "chosen": tuple(data["chosen"])})


def without(selection: Selection, name: str, removed: Collection[int]) -> Selection:
    """Returns the selection that removes some more channels of a group."""
    mask = selection.keep[name].copy()
    mask[list(removed)] = False
    return Selection({**selection.keep, name: mask})

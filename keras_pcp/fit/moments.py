"""When pruning is due in a `fit`: the steps made so far, and the moments of pruning among them. Pure numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.fit.observation import Moment
from keras_pcp.strategies.protocol import FitLength


@dataclass(frozen=True)
class Steps:
    """The steps made in a `fit`. If the data does not give its number of steps, epochs are counted instead.

    Attributes:
        made: number of steps made.
        epoch_start: number of steps made when the current epoch began.
        per_epoch: steps of an epoch; None if epochs are counted.
        at_once: steps that the model runs at a time (`steps_per_execution`).

    Example:
        >>> steps = Steps(per_epoch=5, at_once=2)
        >>> [(steps := steps.after_execution()).made for _ in range(3)]
        [2, 4, 5]
    """

    made: int = 0
    epoch_start: int = 0
    per_epoch: int | None = None
    at_once: int = 1

    def after_execution(self) -> "Steps":
        """Returns the steps after one execution. If epochs are counted, nothing changes."""
        if not self.per_epoch:
            return self
        # The number from Keras will not do: it is that of the first step (3.8), or counts the last execution as full.
        return replace(self, made=min(self.made + self.at_once, self.epoch_start + self.per_epoch))

    def after_epoch(self) -> "Steps":
        """Returns the steps after an epoch."""
        return self if self.per_epoch else replace(self, made=self.epoch_start + 1)

    def next_epoch(self) -> "Steps":
        """Returns the steps at the beginning of an epoch."""
        return replace(self, epoch_start=self.made)

    def carried_out(self, step: int) -> int:
        """Returns the step after which pruning can take place: the end of the execution that contains `step`."""
        if not self.per_epoch:
            return step
        epochs, rest = divmod(step, self.per_epoch)
        return epochs * self.per_epoch + min(self.per_epoch, math.ceil(rest / self.at_once) * self.at_once)


def moments(when: Sequence[int], fit: FitLength, steps: Steps) -> list[Moment]:
    """Returns the moments of pruning for the steps that a strategy chose.

    Raises:
        InvalidArgumentError: the steps are not rising steps of this `fit`, or the last one would come too late.
    """
    found, count, total = [int(step) for step in when], len(when), fit.total
    if not found or found != sorted(set(found)) or not 0 <= found[0] <= found[-1] < total:
        raise InvalidArgumentError(
            f"the strategy must give rising steps in [0, {total}) at which to prune, got {list(when)[:10]}"
        )
    if steps.carried_out(found[-1]) >= total:
        raise InvalidArgumentError(
            f"this fit runs {steps.at_once} of its {total} steps at a time (steps_per_execution), so "
            f"pruning at step {found[-1]} would come after the last step; train for longer, or lower steps_per_execution"
        )
    after = [*found[1:], found[-1]]
    targets = [*map(fit.progress, found[1:]), 1.0]
    return [Moment(s, i, count, targets[i], after[i]) for i, s in enumerate(found)]


def announced(due: Sequence[Moment], rounds: int, total: int, steps: Steps) -> str:
    """Returns what a user wants to know before training: when the model will be pruned, and in how many rounds.

    Args:
        due: the moments.
        rounds: about how many rounds the strategy will need.
        total: length of the `fit`, in steps; in epochs if these are counted.
        steps: tells which of both.

    Example:
        >>> announced([Moment(10), Moment(40)], 12, 100, Steps(per_epoch=50))
        'pruning at 2 moments from step 10 to 40 of 100, in about 12 rounds'
    """
    unit, last = "step" if steps.per_epoch else "epoch", due[-1].step
    when = f"{len(due)} moments from {unit} {due[0].step} to {last}" if len(due) > 1 else f"{unit} {last}"
    return f"pruning at {when} of {total}" + f", in about {rounds} rounds" * (rounds > len(due))


def as_totals(cost: Any) -> Mapping[str, float]:
    """Returns a cost as {"macs": ..., "params": ..., "bytes": ...}."""
    return {"macs": cost.macs, "params": cost.params, "bytes": cost.bytes}

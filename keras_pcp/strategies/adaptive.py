"""Adaptive channel pruning (ACP): removes redundant channels while the network trains, and protects its trainability.

Liu, Zhang, Liu, Li, Hu, Cheng, Yang: Adaptive Channel Pruning for Trainability Protection, PRCV 2023, LNCS 14434, doi
10.1007/978-981-99-8549-4_12.

Known of the paper, from its abstract: it prunes during training, with two modules. A weight-similarity module finds the
unnecessary channels from the weights, protects trainability, and corrects the output feature maps. An adaptive sparsity
control module gives every layer its rate from a preset global target. Formulas, values and tables are not public. What
follows is ours, except where a source is named.

At every moment:
    1. Similarity: score the channels (`criterion`; "orthogonality" compares the filters of a group).
    2. Sparsity control: every group gets a width, and its lowest channels are marked. The width is proportional to the
       effective rank of the matrix of its filters, exp(H) with H the entropy of its squared singular values divided by
       their sum (Roy & Vetterli, The effective rank, EUSIPCO 2007). A layer with similar filters has a low effective rank,
       so it loses more. One factor for all groups is found such that the limits of this moment just hold. The limits
       tighten from moment to moment by the schedule.
    3. Trainability protection: until the next moment, a penalty grows on the marked filters. It takes their products with
       all filters of the layer to 0, and so their own lengths, and the scale and offset of their normalization. Products
       of filters that stay do not count. The penalty is that of TPP (Wang & Fu, Trainability Preserving Neural Pruning,
       ICLR 2023, arXiv 2207.12534), see `Decorrelation`.
    4. Soft until a freeze point: a marked channel that is no longer among the lowest is free again. One that has been
       marked at `patience` moments in a row before is removed. The last moment removes all that are marked.
    5. Correction: the layers that read removed channels get new weights, by which the channels that stay make up for the
       removed ones: least squares on the latest training batches (`Action.correct`).

No validation data is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np

from keras_pcp.criteria.filters import balanced
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import check_widths, smallest
from keras_pcp.select.problem import Problem
from keras_pcp.select.select import SCOPES, Scope, just_enough
from keras_pcp.strategies.decorrelation import Decorrelation
from keras_pcp.strategies.protocol import Action, FitLength, Needs, Observation, Strategy, evenly
from keras_pcp.support import checks

EFFECTIVE_RANK: Final = "effective_rank"


@dataclass(frozen=True, eq=False)
class Marked:
    """Which channels are to go.

    Attributes:
        cut: channels that are left, without those that have been removed.
        age: {group: int array (num_channels,)}, at how many moments in a row a channel has been marked.
        step, next: training steps of the latest moment and of the next one, between which the penalty grows.
    """

    cut: Selection
    age: dict[str, np.ndarray]
    step: int = 0
    next: int = 0


@dataclass(frozen=True, kw_only=True)
class Adaptive(Strategy):
    """Marks redundant channels, decorrelates them from the rest, removes them, and corrects the layers that read them.

    Attributes:
        rates: what gives every group its rate: `"effective_rank"`, or a `scope` of `select_by_cost`.
        patience: at how many moments before a channel must have been marked to be removed, at least 0. With 0, nothing is
            soft, and the penalty never acts, because what is marked goes at once.
        protection: weight of the penalty on marked filters, at least 0; 0: none.
        correct: whether the layers that read removed channels are corrected.
        moments: number of moments, at least 1. Shorter trainings have fewer.
        min_channels: channels that every group keeps at least; or {group name: channels}.
        multiple_of: final widths are rounded up to a multiple of this number (8 or 16 suits many CPUs); or {group name:
            multiple}.

    Raises:
        InvalidArgumentError: an option is out of range.

    Example:
        >>> strategy = Adaptive(patience=2)
        >>> # Pruning(strategy, max_macs=0.5, criterion="orthogonality")
    """

    needs: ClassVar[Needs] = Needs(validation=False, training=True, batches=True)

    rates: Literal["effective_rank"] | Scope = "effective_rank"
    patience: int = 1
    protection: float = 1.0
    correct: bool = True
    moments: int = 4
    min_channels: int | Mapping[str, int] = 1
    multiple_of: int | Mapping[str, int] = 1

    def __post_init__(self):
        checks.choice("rates", self.rates, (EFFECTIVE_RANK, *SCOPES))
        checks.count("patience", self.patience, 0)
        checks.number("protection", self.protection, "[0, inf)")
        checks.count("moments", self.moments)
        check_widths(self.min_channels, self.multiple_of)

    def init(self, problem: Problem) -> Marked:
        """Returns the state in which nothing is marked.

        Raises:
            LimitError: the limits cannot be reached.
            InvalidArgumentError: `min_channels` or `multiple_of` names a group that is not in the graph.
        """
        check_widths(self.min_channels, self.multiple_of, problem.graph)
        problem.check_reachable(smallest(problem.graph, self.min_channels, self.multiple_of))
        return Marked(problem.nothing_removed(), {g.name: np.zeros(g.num_channels, int) for g in problem.graph})

    def rounds(self, problem: Problem) -> int:
        """Returns the number of moments."""
        return self.moments

    def when(self, problem: Problem, fit: FitLength) -> Sequence[int]:
        """Returns moments spread evenly between `begin` and `end`."""
        # No batch has been seen before the first step, so nothing could be corrected.
        return list(dict.fromkeys(max(1, step) for step in evenly(problem, fit, self.moments)))

    def update(self, problem: Problem, state: Marked, seen: Observation) -> tuple[Marked, Action | None]:
        """Marks channels, and removes those that have been marked for long enough."""
        last = seen.moment >= seen.moments - 1
        goal = problem if last else problem.toward(min(1.0, max(seen.target, 1e-9)))
        shares = None
        if self.rates == EFFECTIVE_RANK:
            spectra = seen.scores(spectrum)
            shares = {g.name: effective_rank(spectra[g.name]) / g.num_channels for g in problem.graph}
        keep = just_enough(
            goal,
            seen.scores(),
            scope="local" if self.rates == EFFECTIVE_RANK else self.rates,
            min_channels=self.min_channels,
            multiple_of=self.multiple_of,
            shares=shares,
        ).keep
        age = {name: np.where(mask, 0, state.age[name] + 1) for name, mask in keep.items()}
        wait = 0 if last else self.patience
        left = Selection({name: seen.uncut.keep[name] & (age[name] <= wait) for name in keep})
        state = Marked(left, age, seen.step, seen.next)
        return state, None if left == seen.uncut else Action(left, correct=self.correct)

    def loss_terms(self, problem: Problem, state: Marked) -> list[Any]:
        """Returns the penalty on marked filters, if there are any."""
        marked = {name: (age > 0)[state.cut.keep[name]] for name, age in state.age.items()}
        if not self.protection or not any(mask.any() for mask in marked.values()):
            return []
        return [
            Decorrelation.of(
                problem.graph, state.cut, marked, self.protection, state.step, max(1, state.next - state.step)
            )
        ]


def spectrum(group: ChannelGroup, statistics: Any) -> np.ndarray:
    """Returns the squared singular values of the matrix of a group's filters, one for each channel; in no order."""
    matrix = balanced(group, statistics.weights)
    return np.maximum(np.linalg.eigvalsh(matrix @ matrix.T), 0.0)


def effective_rank(spectrum: np.ndarray) -> float:
    """Returns the effective rank for squared singular values; what is not finite or 0 does not count.

    Example:
        >>> float(effective_rank(np.array([2.0, 2.0, 0.0]))), float(effective_rank(np.array([1.0, -np.inf])))
        (2.0, 1.0)
    """
    values = spectrum[np.isfinite(spectrum) & (spectrum > 0)]
    if not len(values):
        return 1.0
    parts = values / values.sum()
    return np.exp(-np.sum(parts * np.log(parts)))

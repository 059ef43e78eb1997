"""CHEX: prunes and regrows channels repeatedly while the network trains.

Hou, Qin, Sun, Ma, Yuan, Xu, Wang, Jin, Chen, Ding: CHEX: CHannel EXploration for CNN Model Compression, CVPR 2022,
arXiv 2203.15794. If the paper leaves a detail open, the authors' code decides (zejiangh/Filter-GaP).

Every Delta_T epochs until T_max:
    1. Rank all channels of the model by |gamma| of batch normalization. The lowest ones, a share S, set the widths:
       each group loses as many channels as it has among them. This moves width from one group to another.
    2. Keep k channels in a group by column subset selection: W = U Sigma V^T is the matrix with one column per filter,
       and the channels with the largest leverage scores || V_k[j, :] || stay. If a group has more filters than one
       filter has numbers, the L1 norm decides instead.
    3. Regrow: rank again with the sparsity S - delta_t, delta_t = delta_0 (1 + cos(pi t / T_max)) / 2, which gives
       larger widths. The channels for the difference are drawn at random from the pruned ones. Their probabilities are
       the softmax of the distances of their filters from the span of the kept filters. They come back with the weights
       that they had last.
At T_max nothing is regrown, and the pruned channels are removed.

Differs from the paper:
    - S is not given. It is the least share with which the limits hold.
    - The paper trains from scratch for 250 epochs. Here the `fit` may be any, and T_max is the last moment in it.
    - "Layer" is a group of coupled channels. The paper does not prune the ends of residual blocks.
    - A pruned channel has no effect because the weights that read it are zero. Its own filter and normalization get no
      gradient, so they are not trained (weight decay continues), and the weights that it had last are still there.
    - Every group keeps a channel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from keras_pcp.criteria.filters import filters
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import lowest_removed, smallest
from keras_pcp.select.problem import Problem
from keras_pcp.strategies.protocol import Action, FitLength, Needs, Observation, Scores, Strategy
from keras_pcp.support import checks


@dataclass(frozen=True, kw_only=True)
class Chex(Strategy):
    """Prunes and regrows channels every few epochs, and cuts at the end.

    Attributes:
        every: Delta_T, number of epochs from one pruning to the next, at least 1; 2 in the paper.
        regrow: delta_0, share of all channels that come back at first, in [0, 1); 0.3 in the paper.
        widths_by: criterion that divides the channels among the groups. Its scores are compared over the whole model.
            The paper uses `"bn_scale"`, which needs batch normalization on every group.

    Raises:
        InvalidArgumentError: an option is out of range.

    Example:
        >>> strategy = Chex(every=1, regrow=0.2)
        >>> # Pruning(strategy, max_macs=0.5, begin=0.0, end=0.7)
    """

    needs: ClassVar[Needs] = Needs(validation=False, training=True, holds=True)

    every: int = 2
    regrow: float = 0.3
    widths_by: Any = "bn_scale"

    def __post_init__(self):
        checks.count("every", self.every)
        checks.number("regrow", self.regrow, "[0, 1)")

    def init(self, problem: Problem) -> None:
        """Raises LimitError if the limits cannot be reached. The state is empty."""
        problem.check_reachable(smallest(problem.graph))

    def when(self, problem: Problem, fit: FitLength) -> Sequence[int]:
        """Returns every Delta_T-th end of an epoch."""
        return fit.epoch_ends(self.every)

    def update(self, problem: Problem, state: None, seen: Observation) -> tuple[None, Action]:
        """Prunes and regrows."""
        ranks = seen.scores(self.widths_by)
        pruned = least_sparsity(problem, ranks)
        widths = widths_of(problem, ranks, pruned)
        scores = seen.scores(partial(leverage, widths))
        keep = {g.name: lowest_removed(scores[g.name], g.num_channels - widths[g.name]) for g in problem.graph}
        done = (seen.moment + 1) / max(1, seen.moments)
        if done >= 1:
            return state, Action(Selection(keep))
        share = self.regrow * (1 + math.cos(math.pi * done)) / 2
        wider = widths_of(problem, ranks, pruned - int(share * sum(map(len, ranks.values()))))
        outside = seen.scores(partial(residual, keep))
        rng = np.random.default_rng([seen.seed, seen.moment])
        for name, mask in keep.items():
            out = np.flatnonzero(~mask)
            probable = np.exp(outside[name][out] - outside[name][out].max(initial=0.0))
            back = min(len(out), wider[name] - widths[name])
            if back > 0:
                mask[rng.choice(out, back, replace=False, p=probable / probable.sum())] = True
        return state, Action(Selection(keep), how="hold")


def widths_of(problem: Problem, ranks: Scores, pruned: int) -> dict[str, int]:
    """Returns the widths of the groups without the lowest channels of the whole model (line 1)."""
    owner = np.repeat(np.arange(len(ranks)), [len(r) for r in ranks.values()])
    gone = owner[np.argsort(np.concatenate(list(ranks.values())), kind="stable")[: max(0, pruned)]]
    left = {name: len(r) - np.count_nonzero(gone == i) for i, (name, r) in enumerate(ranks.items())}
    return {g.name: max(left[g.name], 1) for g in problem.graph}


def least_sparsity(problem: Problem, ranks: Scores) -> int:
    """Returns the least number of channels, the lowest of the whole model, whose removal meets the limits."""

    def meets(pruned: int) -> bool:
        widths = widths_of(problem, ranks, pruned)
        keep = {g.name: lowest_removed(ranks[g.name], g.num_channels - widths[g.name]) for g in problem.graph}
        return problem.holds(Selection(keep))

    low, high = 0, sum(map(len, ranks.values()))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle + 1, high)
    return high


def leverage(widths: Mapping[str, int], group: ChannelGroup, statistics: Any) -> np.ndarray:
    """Criterion: leverage scores of the filters, given the number of filters to keep (line 2)."""
    columns = filters(group, statistics.weights).T
    if len(columns) < columns.shape[1]:
        return np.abs(columns).sum(axis=0)
    _, _, rows = np.linalg.svd(columns, full_matrices=False)
    return np.linalg.norm(rows[: widths[group.name]], axis=0)


def residual(keep: Mapping[str, np.ndarray], group: ChannelGroup, statistics: Any) -> np.ndarray:
    """Criterion: distance of each filter from the span of the kept filters (line 3)."""
    columns = filters(group, statistics.weights).T
    span = columns[:, keep[group.name]]
    return np.linalg.norm(columns - span @ np.linalg.pinv(span) @ columns, axis=0)

"""Soft filter pruning (SFP): sets filters to zero after every epoch. They may recover in the next one.

He, Kang, Dong, Fu, Yang: Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018, arXiv
1808.06866. With `criterion="fpgm"` it is the method of He et al., Filter Pruning via Geometric Median for Deep CNNs
Acceleration, CVPR 2019, arXiv 1811.00250.

Algorithm 1 of the paper:
    1. for each epoch:
    2.     train the model for the epoch;
    3.     for each layer i:
    4.         compute the L2 norm of each filter;
    5.         set the N_i * P_i filters with the lowest norm to zero (the same rate P_i = P for all layers);
    6. at the end, get the compact model: leave out the filters that are zero.
Zeroed filters are trained like all others, so they may get large again.

Differs from the paper:
    - P is not given. It is the rate, the same for every group, with which the limits just hold.
    - "Layer" is a group of coupled channels. The paper prunes single layers and does not prune the shortcuts of
      residual networks.
    - Filters are zeroed after epochs between `begin` and `end` of the `fit`. After the last of these epochs they are
      cut; the rest of the `fit` is for recovery. Set `end=1.0` to do as the paper, which continues until the last epoch
      and does not fine-tune. The filters of the last selection are cut at once, so another epoch of training cannot
      revive them.
    - Biases are zeroed with the filters. Batch normalization is not, as in the paper.
    - The callback gives the criterion. The paper uses `"l2"`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from keras_pcp.graph.widths import smallest
from keras_pcp.select.problem import Problem
from keras_pcp.select.select import just_enough
from keras_pcp.strategies.protocol import Action, FitLength, Needs, Observation, Strategy
from keras_pcp.support import checks


@dataclass(frozen=True, kw_only=True)
class SoftFilterPruning(Strategy):
    """Zeroes the lowest filters of every group after an epoch, and cuts them at the end.

    Attributes:
        every: number of epochs from one pruning to the next, at least 1.

    Raises:
        InvalidArgumentError: `every` is out of range.

    Example:
        >>> strategy = SoftFilterPruning(every=2)
        >>> # Pruning(strategy, max_macs=0.5, criterion="l2", begin=0.0, end=0.8)
    """

    needs: ClassVar[Needs] = Needs(validation=False, training=True)

    every: int = 1

    def __post_init__(self):
        checks.count("every", self.every)

    def init(self, problem: Problem) -> None:
        """Raises LimitError if the limits cannot be reached. The state is empty."""
        problem.check_reachable(smallest(problem.graph))

    def when(self, problem: Problem, fit: FitLength) -> Sequence[int]:
        """Returns the ends of epochs (line 1)."""
        return fit.epoch_ends(self.every)

    def update(self, problem: Problem, state: None, seen: Observation) -> tuple[None, Action]:
        """Zeroes filters (lines 3 to 5), or cuts them (line 6)."""
        keep = just_enough(problem, seen.scores(), scope="local")
        return state, Action(keep, how="cut" if seen.moment == seen.moments - 1 else "zero")

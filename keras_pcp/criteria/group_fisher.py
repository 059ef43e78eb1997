"""Group Fisher pruning: second-order importance of coupled channels, relative to their cost."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.graph.cost import freed_macs
from keras_pcp.statistics import Statistics, needs_data
from keras_pcp.support import checks


@needs_data
@dataclass(frozen=True)
class GroupFisher:
    """Keeps channels whose removal raises the loss much for the cost it saves: s_c = sum_n (dL_n/dm_c)^2 / freed_c.

    m_c is a mask of value 1 on channel c wherever a kernel reads it. So dL_n/dm_c sums over all coupled readers before it
    is squared. Sample weights apply to the squares. Half of the sum approximates the increase of the loss, with the Fisher
    information as Hessian and the gradient taken as 0. Takes one backward pass per sample; needs data and a compiled model.

    Differs from the paper: scores are computed again for each call. The paper accumulates them over 25 (classification) or
    10 (detection) training steps and removes one channel each time.

    Attributes:
        per: what to divide by: `"macs"` that removing only this channel would save; `"memory"`, the elements of the outputs
            of the layers that make it (the paper's choice); or None for the sum itself.

    References:
        Liu et al., Group Fisher Pruning for Practical Network Compression, ICML 2021, arXiv 2108.00708.
    """

    per: Literal["macs", "memory"] | None = None

    def __post_init__(self):
        checks.choice("per", self.per, ("macs", "memory", None))

    def __call__(self, group: ChannelGroup, statistics: Statistics) -> np.ndarray:
        importance = statistics.sample_weights @ np.square(statistics.gate_gradients[group.name])
        if self.per is None:
            return importance
        by_macs = self.per == "macs"
        freed = freed_macs(statistics.graph, group.name) if by_macs else statistics.freed_elements[group.name]
        if np.isnan(freed).any():
            raise InvalidArgumentError(
                f"cannot count what removing a channel of group {group.name!r} saves, because the MACs of a layer are "
                "unknown (print count_cost(graph)). Give the model's inputs fixed sizes, or use GroupFisher(per=None)"
            )
        return importance / np.maximum(freed, 1)

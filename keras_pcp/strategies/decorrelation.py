"""The penalty that takes filters out of a network while it trains: it decorrelates them from the filters that stay.

Wang & Fu: Trainability Preserving Neural Pruning, ICLR 2023, arXiv 2207.12534 (TPP); code: MingSun-Tse/TPP. With the filters
of a layer as the rows of W and G = W W^T, the paper's loss is the mean square of the elements of G whose row or column
belongs to a filter that will be pruned. A second, L2 penalty acts on these filters and on the scale and offset of their
normalization. Both grow in the course of training.

Differs from the paper:
    - In the paper, the factor grows by 1e-4 every 5 or 10 steps up to 1, and the first loss is weighted by 1000. Here, the
      factor grows from 0 to 1 until the next moment of pruning (at once if the data does not give its number of steps),
      and one weight is for both penalties.
    - Filters of a depthwise convolution read different channels, so only the second penalty acts on them.
    - Before G is computed, the filters of a layer are divided by the root mean square of their lengths, taken as a constant,
      so the first penalty does not depend on the scale of the weights. The squares are summed over one index of G and
      averaged over the other; the paper averages over both.
    - The L2 penalty is part of the loss. The paper adds it to the gradients, which is the same for SGD.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import FOLLOW, PRODUCE
from keras_pcp.graph.narrowing import narrowed
from keras_pcp.graph.selection import Selection
from keras_pcp.support.batch import Batch


@dataclass(frozen=True)
class Penalized:
    """Positions along one axis of a weight that are marked; `filters` says whether they hold filters."""

    weight: int
    axis: int
    marked: tuple[bool, ...]
    filters: bool


@dataclass(frozen=True)
class Decorrelation:
    """A loss term: the loss plus the two penalties.

    Attributes:
        places: what is penalized, in the model as it is now.
        weight: weight of the penalties when they are fully grown.
        start: training step at which they begin to grow.
        steps: training steps until they are fully grown.
    """

    places: tuple[Penalized, ...]
    weight: float
    start: int
    steps: int

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        left: Selection,
        marked: Mapping[str, np.ndarray],
        weight: float,
        start: int,
        steps: int,
    ) -> "Decorrelation":
        """Returns the term.

        Args:
            graph: channel graph of the unpruned model.
            left: channels that the model still has.
            marked: {group: boolean array, one for each channel that it still has}, True for the marked ones.
            weight, start, steps: see the attributes.
        """
        now = narrowed(graph, left)
        places: dict[tuple[int, int, bool], np.ndarray] = {}
        for group in now:
            for s in group.slices:
                filters = s.role == PRODUCE and s.part == "kernel"
                if filters or (s.role == FOLLOW and s.part in ("depthwise", "scale", "offset")):
                    none = np.zeros(now.weights[s.weight].shape[s.axis].size, bool)
                    along = places.setdefault((s.weight, s.axis, filters), none)  # an axis can hold several groups
                    along[s.positions] = marked[group.name][s.channels]
        found = ((*place, along) for place, along in places.items() if along.any())
        return cls(
            tuple(Penalized(number, axis, tuple(along.tolist()), filters) for number, axis, filters, along in found),
            weight,
            start,
            steps,
        )

    def __call__(self, loss: Any, batch: Batch) -> Any:
        ops, weights, penalty = batch.ops, batch.model.weights, 0.0
        for place in self.places:
            value = ops.cast(weights[place.weight], "float32")
            rows = ops.reshape(ops.moveaxis(value, place.axis, 0), (len(place.marked), -1))
            mask = np.array(place.marked, "float32")
            penalty += 0.5 * ops.sum(ops.square(rows) * mask[:, None])
            if place.filters:
                scale = ops.stop_gradient(ops.sqrt(ops.sum(ops.square(rows)) / len(mask)))
                unit = rows / ops.maximum(scale, 1e-12)
                marked = np.flatnonzero(place.marked)
                products = ops.square(ops.take(unit, marked, axis=0) @ ops.transpose(unit))
                # A pair of two marked filters is among the products twice, a pair of a marked and another one once.
                penalty += ops.sum(products * (2 - mask)) / len(mask)
        grown = (ops.cast(batch.step, "float32") - self.start) / self.steps
        factor = self.weight / batch.replicas * ops.clip(grown, 0.0, 1.0)
        return loss + ops.cast(factor * penalty, loss.dtype)

"""Finds the weights that a model would have if it were pruned differently."""

from collections.abc import Mapping

import numpy as np

from keras_pcp.fit.compare import Values
from keras_pcp.fit.live_model import FEW_SAMPLES, LiveModel
from keras_pcp.graph.channels import CONSUME
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.weight_masks import consumer_masks
from keras_pcp.repair.closed_form import Compensation
from keras_pcp.repair.least_squares import inputs_at_once
from keras_pcp.support.data import count_samples
from keras_pcp.surgery.masks import with_zeros


class Variants:
    """Weights that differ from the current ones. They are found once for each selection and remembered until `forget`.

    Attributes:
        samples: number of samples that were run to find them.
    """

    def __init__(self, live: LiveModel, seed: int):
        self.live, self.seed, self.samples = live, seed, 0
        self._found: dict[int, tuple[Selection, Values]] = {}
        self._compensation: Compensation | None = None

    def forget(self) -> None:
        """Forgets all weights, because the model changes."""
        self._found.clear()
        self._compensation = None

    def values(self, selection: Selection, kept: Selection) -> Values:
        """Returns {weight index: value} that makes a model which computes with `kept` compute with `selection`."""
        if id(selection) not in self._found:
            self._found[id(selection)] = selection, self._values(selection, kept)
        return self._found[id(selection)][1]

    def _values(self, selection: Selection, kept: Selection) -> Values:
        live = self.live
        other = {n: mask for n, mask in selection.keep.items() if not np.array_equal(mask, kept.keep[n])}
        masks = consumer_masks(live.graph, live.here(Selection(other)))
        if any((mask & ~kept.keep[n]).any() for n, mask in other.items()):  # channels that are held at zero come back
            masks = consumer_masks(live.graph, live.here(selection))
            back = {s.weight for n in other for s in live.graph[n].slices_of(CONSUME)}
            whole = {i: live.value(i) for i in back}
            return {i: np.where(masks.get(i, True), v, v.dtype.type(0)) for i, v in whole.items()}
        values = with_zeros(live.model, masks)
        return values if live.refit_on is None else {**values, **self._compensated(masks)}

    def _compensated(self, masks: Mapping[int, np.ndarray]) -> Values:
        live = self.live
        if self._compensation is None:
            kernels = {s.weight for group in live.graph for s in group.slices_of(CONSUME)}
            x = inputs_at_once(live.model, live.refit_on, FEW_SAMPLES, self.seed)
            self._compensation = Compensation(live.model, kernels, x, seed=self.seed)
            self.samples += count_samples(x)
        return self._compensation.values(masks)

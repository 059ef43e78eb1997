"""Takes channels out of a model for some time: the weights that read them are held at zero over training steps.

A gate is a constraint on a variable. Every Keras optimizer applies it after each update. The gate sets values to zero
by a mask. The mask is a variable, so it can change without a retrace, and it works inside `steps_per_execution`. The
values that a gate holds back are kept, so channels may come back with the weights that they had.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import CONSUME
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.weight_masks import consumer_masks
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal
from keras_pcp.surgery.in_place import strategy_scope


class Gates:
    """Gates on the readers of channels. All changes go through a journal and can be undone.

    Args:
        model: a model, compiled or not.
        graph: its channel graph, as it is now.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> from keras_pcp.support.changes import all_or_nothing
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3, name="hidden")(x)))
        >>> gates = Gates(model, keras_pcp.build_graph(model))
        >>> one_out = keras_pcp.Selection({"hidden": np.array([True, False, True])})
        >>> all_or_nothing(lambda journal: gates.hold(one_out, journal))
        >>> model.get_weights()[2][1].tolist()
        [0.0, 0.0]
        >>> all_or_nothing(gates.open)
        >>> bool(model.get_weights()[2][1].all())
        True
    """

    def __init__(self, model: keras.Model, graph: ChannelGraph):
        self.model, self.graph = model, graph
        self.masks: dict[int, keras.Variable] = {}
        self.held_back: dict[int, np.ndarray] = {}

    def hold(self, selection: Selection, journal: Journal) -> None:
        """Holds at zero all channels that a selection leaves out, and lets all others pass."""
        self._install(journal)
        weights, masks = self.model.weights, consumer_masks(self.graph, selection)
        held_back, changes = {}, []
        for i, gate in self.masks.items():
            whole, new = self.whole(i), np.broadcast_to(masks.get(i, np.True_), gate.shape)
            held_back[i] = whole
            changes += [(gate, new), (weights[i], np.where(new, whole, whole.dtype.type(0)))]
        journal.set(self, "held_back", held_back)
        journal.assign(changes)

    def write(self, values: Mapping[int, np.ndarray], journal: Journal) -> None:
        """Changes the values of weights. Parts that are held stay at zero, and come back with the new values."""
        weights = self.model.weights
        gated = {i: value for i, value in values.items() if i in self.masks}
        journal.set(self, "held_back", self.held_back | gated)
        journal.assign(
            (weights[i], np.where(self.masks[i].numpy(), v, v.dtype.type(0)) if i in gated else v)
            for i, v in values.items()
        )

    def open(self, journal: Journal) -> None:
        """Lets all channels pass, and removes the gates."""
        if not self.masks:
            return
        weights = self.model.weights
        journal.assign([(weights[i], self.whole(i)) for i in self.masks])
        for i in self.masks:
            journal.set(weights[i], "constraint", weights[i].constraint.before)
        journal.set(self, "masks", {})
        journal.set(self, "held_back", {})
        internals.forget_traces([self.model], journal)

    def whole(self, index: int) -> np.ndarray:
        """Returns the value of a weight, including the values that a gate holds back."""
        value = self.model.weights[index].numpy()
        if index not in self.held_back:
            return value
        passing = np.broadcast_to(self.masks[index].numpy(), value.shape)
        return np.where(passing, value, self.held_back[index])

    def _install(self, journal: Journal) -> None:
        """Puts a gate on every weight that reads channels. The train function is traced again, once."""
        if self.masks:
            return
        readers: dict[int, set[int]] = {}
        for group in self.graph:
            for s in group.slices_of(CONSUME):
                readers.setdefault(s.weight, set()).add(s.axis)
        masks, weights = {}, self.model.weights
        with strategy_scope(self.model):
            for i, axes in readers.items():
                shape = [size if axis in axes else 1 for axis, size in enumerate(weights[i].shape)]
                masks[i] = keras.Variable(np.ones(shape, bool), trainable=False, dtype="bool", name="gate")
        for i, mask in masks.items():
            journal.set(weights[i], "constraint", Gate(mask, weights[i].constraint))
        journal.set(self, "masks", masks)
        internals.forget_traces([self.model], journal)


class Gate:
    """A constraint that first applies the earlier constraint of a weight, then sets a part of the weight to zero."""

    def __init__(self, mask: keras.Variable, before: Callable | None):
        self.mask, self.before = mask, before

    def __call__(self, weight: Any) -> Any:
        value = weight if self.before is None else self.before(weight)
        return keras.ops.where(self.mask, value, keras.ops.zeros_like(value))


def check_gates(model: keras.Model) -> None:
    """Raises UnsupportedModelError if the optimizer writes weights without applying constraints."""
    optimizer = getattr(model, "optimizer", None)
    if getattr(optimizer, "use_ema", False):
        raise UnsupportedModelError(
            f"optimizer {type(optimizer).__name__} of model {model.name!r} has use_ema=True: it replaces weights by "
            "averages, which would bring channels back that are held at zero; compile without use_ema, or use a "
            "strategy that cuts"
        )


def zeroed(model: keras.Model, graph: ChannelGraph, selection: Selection) -> Mapping[int, np.ndarray]:
    """Returns {weight index: value} of the weights that make channels, with zeros for channels left out."""
    values: dict[int, np.ndarray] = {}
    weights = model.weights
    for name in selection.removed():
        for s in graph[name].slices:
            if s.role == "produce" or s.part == "depthwise":
                value = values.setdefault(s.weight, weights[s.weight].numpy().copy())
                gone = s.positions[~selection.keep[name][s.channels]]
                np.moveaxis(value, s.axis, 0)[gone] = 0
    return values

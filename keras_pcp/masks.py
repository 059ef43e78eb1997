"""Attempts without surgery: a model that computes as if pruned, because what would read the channels is zero.

Zeroing the rows of every consumer that reads a channel equals removing the channel, whatever lies in between, and
needs no retracing because weights are variables.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np

from keras_pcp.channels import CONSUME, ChannelGraph, Selection, check_selection
from keras_pcp.graph import check_fits


def consumer_masks(graph: ChannelGraph, selection: Selection) -> dict[int, np.ndarray]:
    """Returns {weight index: boolean array that broadcasts to the weight}, False where a removed channel is read."""
    masks: dict[int, np.ndarray] = {}
    for name, removed in selection.removed().items():
        gone = np.zeros(graph[name].num_channels, bool)
        gone[removed] = True
        for s in graph[name].slices_of(CONSUME):
            shape = graph.weights[s.weight].shape
            along = [extent.size if a == s.axis else 1 for a, extent in enumerate(shape)]
            mask = np.ones(along, bool)
            mask.reshape(-1)[s.positions[gone[s.channels]]] = False
            masks[s.weight] = masks[s.weight] & mask if s.weight in masks else mask
    return masks


@contextmanager
def masked(model: keras.Model, graph: ChannelGraph, selection: Selection) -> Iterator[keras.Model]:
    """The model computes as if pruned inside the `with` block; afterwards every weight is restored bit for bit.

    Args:
        model: the model that `graph` was built from.
        graph: its channel graph.
        selection: channels to keep.

    Raises:
        InvalidArgumentError: the selection does not fit.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3, name="hidden")(x)))
        >>> graph = keras_pcp.build_graph(model)
        >>> before = model.get_weights()
        >>> with keras_pcp.masked(model, graph, keras_pcp.Selection({"hidden": np.array([True, False, True])})):
        ...     zero_row = model.get_weights()[2][1]
        >>> zero_row.tolist(), all((a == b).all() for a, b in zip(before, model.get_weights()))
        ([0.0, 0.0], True)
    """
    check_selection(graph, selection)
    check_fits(model, graph)
    with zeroed(model, consumer_masks(graph, selection)):
        yield model


@contextmanager
def zeroed(model: keras.Model, masks: Mapping[int, np.ndarray]) -> Iterator[None]:
    """Zeroes weights where their masks are False, and restores them bit for bit."""
    variables = model.weights
    saved = {i: variables[i].numpy() for i in masks}
    try:
        for i, mask in masks.items():
            variables[i].assign(np.where(mask, saved[i], 0))
        yield
    finally:
        for i, value in saved.items():
            variables[i].assign(value)

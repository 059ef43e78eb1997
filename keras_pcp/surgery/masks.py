"""Attempts without surgery: a model computes as if pruned, because the weights that read the channels are zero.

Setting the rows of all consumers that read a channel to zero equals removing the channel, whatever lies in between (only
approximately if a group is not `exact`). It needs no retracing, because weights are variables.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import keras
import numpy as np

from keras_pcp.graph.build import check_fits
from keras_pcp.graph.channel_graph import ChannelGraph, check_selection
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.weight_masks import consumer_masks
from keras_pcp.support.changes import Journal, temporarily


def masked(model: keras.Model, graph: ChannelGraph, selection: Selection) -> AbstractContextManager[keras.Model]:
    """Makes the model compute as if pruned inside a `with` block; afterwards restores every weight bit for bit.

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
    return replaced(model, with_zeros(model, consumer_masks(graph, selection)))


def with_zeros(model: keras.Model, masks: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Returns {weight index: its value with zeros where the mask is False}."""
    weights = model.weights
    return {i: np.where(mask, value := weights[i].numpy(), value.dtype.type(0)) for i, mask in masks.items()}


def replaced(model: keras.Model, values: Mapping[int, np.ndarray]) -> AbstractContextManager[keras.Model]:
    """Assigns other values to weights inside a `with` block, and restores them bit for bit."""

    def change(journal: Journal) -> keras.Model:
        weights = model.weights
        journal.assign((weights[i], value) for i, value in values.items())
        return model

    return temporarily(change)

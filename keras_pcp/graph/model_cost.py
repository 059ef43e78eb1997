"""The cost of a model or a graph: the public function for both."""

import keras

from keras_pcp.graph.build import build_graph
from keras_pcp.graph.channel_graph import ChannelGraph, check_selection
from keras_pcp.graph.cost import Cost, cost_of
from keras_pcp.graph.selection import Selection
from keras_pcp.support.models import check_model


def count_cost(model_or_graph: keras.Model | ChannelGraph, selection: Selection | None = None) -> Cost:
    """Counts multiply-accumulates, parameters and bytes.

    Args:
        model_or_graph: a model, or the graph of one (no model is built for a selection).
        selection: which channels stay; None counts the model as it is.

    Returns:
        A `Cost`. For a selection it equals the cost of the model that `prune_model` returns.

    Raises:
        UnsupportedModelError: the model has no functional graph.
        InvalidArgumentError: the selection does not fit.

    Example:
        >>> import keras, keras_pcp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 3, padding="same")(x)
        >>> cost = keras_pcp.count_cost(keras.Model(x, keras.layers.Dense(10)(keras.layers.Flatten()(y))))
        >>> cost.macs, cost.params                      # 8*8*16 * 3*3*3 + 1024*10
        (37888.0, 10698)
    """
    graph = model_or_graph
    if not isinstance(graph, ChannelGraph):
        check_model("model_or_graph", graph)
        graph = build_graph(graph, on_unknown="freeze")
    selection = Selection() if selection is None else selection
    check_selection(graph, selection)
    return cost_of(graph, selection)

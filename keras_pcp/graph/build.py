"""Builds the channel graph of a model: runs the rules over its calls, and turns labels into groups."""

from collections.abc import Iterable
from typing import Literal, get_args

import keras

from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.channel_graph import ChannelGraph, check_graph
from keras_pcp.graph.grouping import grouped
from keras_pcp.graph.notes import Index, Notes
from keras_pcp.graph.program import Program, program_of
from keras_pcp.graph.recorder import GraphRecorder
from keras_pcp.graph.rules import (
    attention,
    contraction,
    elementwise,
    kerashub,
    movement,
    parametric,
    slicing,
    structural,
)
from keras_pcp.graph.trace import fingerprint
from keras_pcp.support import checks
from keras_pcp.support.models import check_model

OnUnknown = Literal["error", "freeze"]  # what may be done about a layer without a rule
UNKNOWN = get_args(OnUnknown)
_RULE_MODULES = (parametric, contraction, structural, movement, slicing, elementwise, attention, kerashub)


def build_graph(
    model: keras.Model, *, on_unknown: OnUnknown = "error", frozen_layers: Iterable[str] = ()
) -> ChannelGraph:
    """Finds out which channels of a model can be pruned, and which of them are coupled.

    The outputs of the model always keep their width. The model is not changed.

    Args:
        model: a built Functional or Sequential model. Nested models are analysed, too.
        on_unknown: what to do about a layer or operation without a rule. `"error"` raises an error. `"freeze"` freezes
            every channel that reaches it, and records the reason.
        frozen_layers: names of layers that keep their width. They still train, unlike layers that are frozen in Keras,
            which have `trainable=False`.

    Returns:
        A `ChannelGraph`. `print` it to see the groups and the frozen layers.

    Raises:
        UnsupportedModelError: the model has no functional graph, uses channels_first, or has an unknown layer and
            `on_unknown` is `"error"`.
        InvalidArgumentError: `on_unknown` or a name in `frozen_layers` is not valid.

    Example:
        >>> import keras, keras_pcp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 3, name="conv")(x)
        >>> y = keras.layers.GlobalAveragePooling2D()(y)
        >>> model = keras.Model(x, keras.layers.Dense(10, name="logits")(y))
        >>> graph = keras_pcp.build_graph(model)
        >>> [(group.name, group.num_channels) for group in graph]
        [('conv', 16)]
        >>> graph.frozen[0].layer, graph.frozen[0].reason
        ('logits', 'output of the model')
    """
    check_model("model", model)
    return graph_of(program_of(model), on_unknown, frozen_layers)


def graph_of(program: Program, on_unknown: OnUnknown = "error", frozen_layers: Iterable[str] = ()) -> ChannelGraph:
    """Does what `build_graph` does, for a program."""
    return grouped(program, *notes_of(program, on_unknown, frozen_layers))


def notes_of(
    program: Program, on_unknown: OnUnknown = "error", frozen_layers: Iterable[str] = ()
) -> tuple[Index, Notes]:
    """Returns what the rules say about a program, from which `grouped` makes the graph."""
    checks.choice("on_unknown", on_unknown, UNKNOWN)
    frozen_layers = checks.names("frozen_layers", frozen_layers)
    names = set(program.names.values())
    missing = [n for n in frozen_layers if n not in names]
    if missing:
        raise InvalidArgumentError(f"frozen_layers names {missing}, which {program.model.name!r} does not have")
    recorder = GraphRecorder(program, set(frozen_layers))
    notes = recorder.run()
    if notes.unknown and on_unknown == "error":
        raise UnsupportedModelError(_unknown_message(notes.unknown))
    return recorder.index, notes


def _unknown_message(unknown: dict[str, str]) -> str:
    shown = "; ".join(list(unknown.values())[:5])
    more = f" (and {len(unknown) - 5} more)" if len(unknown) > 5 else ""
    return (
        f"what these do to channels is unknown: {shown}{more}. Add a rule with keras_pcp.register_rule(LayerClass), "
        "or pass on_unknown='freeze' to keep every channel that reaches them"
    )


def check_fits(model: keras.Model, graph: ChannelGraph) -> Program:
    """Raises InvalidArgumentError unless weights, calls and blocks of `graph` are those of `model`.

    Returns:
        The program of the model, with blocks opened as in the graph.
    """
    check_model("model", model)
    check_graph(graph)
    found = [tuple(w.shape) for w in model.weights]
    expected = [tuple(extent.size for extent in info.shape) for info in graph.weights]
    if found != expected:
        raise InvalidArgumentError(
            f"the graph was built from a model with other weights than {model.name!r} has now "
            f"({len(expected)} against {len(found)} weights, or other shapes); call build_graph(model) again"
        )
    program = program_of(model, opening=bool(graph.blocks))
    if program.opened.blocks != graph.blocks:
        raise InvalidArgumentError(
            f"the graph was built from a model with blocks such as {graph.blocks[0]!r}, which {model.name!r} does not "
            "have; call build_graph(model) again"
        )
    if fingerprint(program.trace, model.weights) != graph.fingerprint:
        raise InvalidArgumentError(
            f"the graph was built from another model ({graph.model_name!r}) than {model.name!r}: the weights have the same "
            "shapes, but the layers, their settings or their connections differ; call build_graph(model)"
        )
    return program

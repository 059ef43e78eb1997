"""The part of a model that is delivered. Heads that exist only for training are neither counted nor pruned."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import keras

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.build import OnUnknown, build_graph, graph_of
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.program import Program, program_of


def delivered_graph(
    model: keras.Model, deliver: keras.Model | None, on_unknown: OnUnknown, frozen_layers: Iterable[str]
) -> ChannelGraph:
    """Builds the channel graph of a model, of which only a part may count.

    Args:
        model: the model that is trained and pruned.
        deliver: the part that counts, a model that shares layers with `model`; None: all of `model` counts.
        on_unknown, frozen_layers: as in `build_graph`.

    Returns:
        The graph of `model`. Weights that no call of `deliver` uses cost nothing, and channels of their layers cannot be
        removed. Calls that `deliver` does not make cost nothing.

    Raises:
        InvalidArgumentError: `deliver` uses weights that `model` does not have, or no weights at all; or different layers
            of the two have the same name.
    """
    if deliver is None:
        return build_graph(model, on_unknown=on_unknown, frozen_layers=frozen_layers)
    used, program = _operations(program_of(deliver)), program_of(model)
    delivered, weights = {id(w) for o in used for w in getattr(o, "weights", ())}, model.weights
    all_of_it = {id(w) for w in weights}
    if not delivered or delivered - all_of_it:
        raise InvalidArgumentError(
            f"deliver must be a model made of layers of {model.name!r}, but {len(delivered - all_of_it)} of the "
            f"{len(delivered)} weights of {deliver.name!r} do not belong to it"
        )
    operations, ours = _operations(program), Counter(map(program.name_of, used))
    theirs = Counter(map(program.name_of, operations))
    apart = [o for o in operations if getattr(o, "weights", ()) and delivered.isdisjoint(map(id, o.weights))]
    extra = set(map(program.name_of, apart))
    if extra & ours.keys():
        raise InvalidArgumentError(
            f"layers of {deliver.name!r} and other layers of {model.name!r} have the same names, so they cannot be "
            f"distinguished: {sorted(extra & ours.keys())}; rename one of each"
        )
    frozen = [frozen_layers] if isinstance(frozen_layers, str) else list(frozen_layers)
    graph = graph_of(program, on_unknown, [*frozen, *sorted(extra)])
    return replace(
        graph,
        weights=tuple(
            info if id(w) in delivered else replace(info, layer="")
            for info, w in zip(graph.weights, weights, strict=True)
        ),
        macs=tuple(
            replace(term, factor=term.factor * ours[term.layer] / theirs[term.layer])
            for term in graph.macs
            if ours[term.layer]
        ),
    )


def _operations(program: Program) -> list[Any]:
    """Lists the operations of a program, once for each call."""
    return [call.operation for call in program.trace.calls if call.operation is not None]

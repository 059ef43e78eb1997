"""Checks the rule of a layer."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.build import build_graph
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.graph.rules import find_rule
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import smallest
from keras_pcp.surgery.copies import prune_model
from keras_pcp.surgery.in_place import shrink
from keras_pcp.surgery.masks import masked
from keras_pcp.testing.networks import SEED, close, require

L = keras.layers


def check_rule(
    layer: keras.Layer | Callable[[], keras.Layer], input_shape: Sequence[int] | Sequence[Sequence[int]]
) -> None:
    """Checks the rule of a layer on a tiny model that has the layer between two dense layers.

    The graph must be built, and the cost of every layer must be known. Then some channels are removed. The pruned model
    must meet these conditions:

    - It computes the same as the masked model (unless the rule calls `site.mark_inexact`).
    - It costs as much as predicted.
    - It computes the same after it has been saved and loaded.
    - It computes the same as the model after `shrink`.

    A rule that freezes everything meets all conditions.

    Args:
        layer: the layer, which must not have been called before. Or its class, if that takes no arguments. All float
            weights of the layer get random values.
        input_shape: shape of the input without the batch axis, all sizes known, channels last. For a layer that takes a
            list of inputs, a list of such shapes.

    Raises:
        AssertionError: a condition does not hold. The message says which.

    Example:
        >>> import keras, keras_pcp, keras_pcp.testing
        >>> @keras.saving.register_keras_serializable("my_package")
        ... class Scaled(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.factor = self.add_weight(shape=shape[-1:], name="factor")
        ...     def call(self, x):
        ...         return x * self.factor
        >>> @keras_pcp.register_rule(Scaled)
        ... def scaled(site):
        ...     labels = site.inputs[0]
        ...     site.follow(site.operation.factor, 0, site.channels(labels), "scale")
        ...     return labels
        >>> keras_pcp.testing.check_rule(Scaled, (8, 8, 4))
        >>> _ = keras_pcp.register_rule(Scaled, replace=True)(lambda site: site.inputs[0])
        >>> keras_pcp.testing.check_rule(Scaled(name="scale"), (8, 8, 4))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: the rule of 'scale' (Scaled) lets channels be removed but says nothing of the layer's weight ...
    """
    layer = layer if isinstance(layer, keras.Layer) else layer()
    what = f"{layer.name!r} ({type(layer).__name__})"
    require(find_rule(layer) is not None, f"{what} has no rule; register one with keras_pcp.register_rule")
    several = isinstance(input_shape[0], Sequence)
    model = _around(layer, cast("Sequence[Sequence[int]]", input_shape if several else [input_shape]))
    try:
        graph = build_graph(model)
    except UnsupportedModelError as error:
        raise AssertionError(str(error)) from error
    for name, why in count_cost(graph).uncounted.items():
        raise AssertionError(f"the cost of {name!r} is unknown: {why}")
    x = [np.random.default_rng(SEED).normal(size=(4, *t.shape[1:])).astype("float32") for t in model.inputs]
    selection = Selection()
    for selection in _selections(graph):
        _check_pruned(what, model, graph, selection, x)
    expected = _outputs(prune_model(model, graph, selection), x)
    shrink(model, graph, selection)
    require(
        _alike(_outputs(model, x), expected), f"{what} computes different outputs after shrink than after prune_model"
    )


def _around(layer: keras.Layer, shapes: Sequence[Sequence[int]]) -> keras.Model:
    inputs = [keras.Input((*shape[:-1], 3)) for shape in shapes]
    made = [L.Dense(shape[-1], name=f"before_{k}")(i) for k, (i, shape) in enumerate(zip(inputs, shapes, strict=True))]
    outputs = tree.flatten(layer(made if len(made) > 1 else made[0]))
    for y in outputs:
        known = None not in y.shape[1:]
        require(
            known, f"{layer.name!r} turns {shapes} into {y.shape}; choose a shape from which Keras infers all sizes"
        )
    model = keras.Model(
        inputs if len(inputs) > 1 else inputs[0],
        [L.Dense(3, name=f"after_{k}")(L.Flatten()(y)) for k, y in enumerate(outputs)],
    )
    rng = np.random.default_rng(SEED)
    for w in model.weights:
        if "float" in str(w.dtype):
            w.assign(rng.normal(0, 0.5, w.shape) if len(w.shape) > 1 else rng.uniform(0.5, 1.5, w.shape))
    return model


def _selections(graph: ChannelGraph) -> Iterator[Selection]:
    """Yields selections to try.

    For each group: without its first channel, and without as many channels as possible. Then one selection without
    every second channel of all groups.
    """
    least = smallest(graph).keep
    for group in graph:
        for keep in (np.arange(group.num_channels) > 0, least[group.name]):
            if least[group.name].sum() < group.num_channels:
                yield Selection({group.name: keep | (keep.sum() < least[group.name].sum())})
    yield Selection({g.name: least[g.name] | (np.arange(g.num_channels) % 2 == 1) for g in graph})


def _check_pruned(
    what: str, model: keras.Model, graph: ChannelGraph, selection: Selection, x: Sequence[np.ndarray]
) -> None:
    removed = {name: channels.tolist() for name, channels in selection.removed().items()}
    where = f"{what}, with channels {removed} removed,"
    try:
        small = prune_model(model, graph, selection)
        found = _outputs(small, x)
    except Exception as error:  # whatever Keras or the layer raises
        raise AssertionError(f"{where} fails: {error}") from error
    with masked(model, graph, selection):
        expected = _outputs(model, x)
    if all(graph[name].exact for name in removed):
        require(
            _alike(found, expected),
            f"{where} computes different outputs than with these channels set to 0 where they are read. Either the rule "
            "passes on channels that the layer mixes, or it assigns positions of a weight to the wrong channels. (If the "
            "layer only takes statistics over channels, call site.mark_inexact)",
        )
    predicted, counted = count_cost(graph, selection), count_cost(small)
    for name in ("macs", "params", "bytes"):
        a, b = getattr(predicted, name), getattr(counted, name)
        require(a == b, f"{where} has {b:,.0f} {name}, but {a:,.0f} were predicted")
    classes = {type(operation).__name__: type(operation) for operation in small.layers}
    with tempfile.TemporaryDirectory() as folder:
        try:
            small.save(path := Path(folder) / "model.keras")
            loaded = keras.models.load_model(path, custom_objects=classes, compile=False, safe_mode=False)
        except Exception as error:
            raise AssertionError(
                f"{where} cannot be saved and loaded. Does the rule call site.width for each number in the layer's config "
                f"that is a width? {error}"
            ) from error
    require(
        _alike(_outputs(loaded, x), found), f"{where} computes different outputs after it has been saved and loaded"
    )


def _outputs(model: keras.Model, x: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(y) for y in tree.flatten(model(x if len(x) > 1 else x[0]))]


def _alike(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return all(a.shape == b.shape and close(a, b) for a, b in zip(found, expected, strict=True))

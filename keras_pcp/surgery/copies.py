"""Makes a smaller or a wider copy of a model; the original is not changed."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.blocks import inlined
from keras_pcp.graph.build import check_fits
from keras_pcp.graph.channel_graph import ChannelGraph, check_selection
from keras_pcp.graph.effects import keep_attributes
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.trace import trace
from keras_pcp.graph.weight_masks import weight_masks
from keras_pcp.support import internals
from keras_pcp.support.changes import undone
from keras_pcp.support.models import check_model
from keras_pcp.surgery.in_place import check_live, rewrite_widths, sliced, strategy_scope
from keras_pcp.surgery.likeness import first_unlike


def prune_model(model: keras.Model, graph: ChannelGraph, selection: Selection) -> keras.Model:
    """Returns a new, smaller model without the channels that `selection` removes; `model` is not changed.

    The result is made of plain layers (see `inline_blocks`) and is not compiled. Its weights are slices of the original's.

    Args:
        model: a Functional or Sequential model.
        graph: `build_graph(model)`.
        selection: channels to keep, at least one in every group.

    Returns:
        The smaller model.

    Raises:
        InvalidArgumentError: graph or selection does not fit the model.
        UnsupportedModelError: the model cannot be rebuilt from its config.

    Example:
        >>> import keras, keras_pcp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 3, name="conv")(x)
        >>> model = keras.Model(x, keras.layers.Dense(10)(keras.layers.Flatten()(y)))
        >>> graph = keras_pcp.build_graph(model)
        >>> scores = keras_pcp.score_channels(model, graph, "l1")
        >>> small = keras_pcp.prune_model(model, graph, keras_pcp.select_by_ratio(graph, scores, 0.5))
        >>> small.get_layer("conv").filters, model.get_layer("conv").filters
        (8, 16)
    """
    check_selection(graph, selection)
    check_fits(model, graph)
    masks = weight_masks(graph, selection)
    values = {id(w): sliced(internals.array_of(w), masks.get(i, {})) for i, w in enumerate(model.weights)}
    return _rebuilt(model, values, lambda copy: rewrite_widths(trace(copy), graph, selection))


def widen_model(pruned: keras.Model, original: keras.Model, graph: ChannelGraph, selection: Selection) -> keras.Model:
    """Returns a model with the original widths that computes what `pruned` computes: the inverse of `prune_model`.

    Removed channels come back as zeros.

    Args:
        pruned: the smaller model.
        original: the model that it was pruned from (only its structure is used).
        graph: `build_graph(original)`.
        selection: the selection that it was pruned with.

    Returns:
        The wider model, not compiled.

    Raises:
        InvalidArgumentError: the weights of `pruned` do not have the shapes that the selection gives.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3, name="hidden")(x)))
        >>> graph = keras_pcp.build_graph(model)
        >>> selection = keras_pcp.Selection({"hidden": np.array([True, False, True])})
        >>> small = keras_pcp.prune_model(model, graph, selection)
        >>> wide = keras_pcp.widen_model(small, model, graph, selection)
        >>> wide.get_layer("hidden").units, bool(np.allclose(wide(np.ones((1, 4))), small(np.ones((1, 4)))))
        (3, True)
    """
    check_selection(graph, selection)
    program = check_fits(original, graph)
    check_model("pruned", pruned)
    masks = weight_masks(graph, selection)
    values = []
    index = {id(w): i for i, w in enumerate(original.weights)}
    wide_weights = program.opened.model.weights
    if len(wide_weights) != len(pruned.weights):
        raise InvalidArgumentError(
            f"pruned has {len(pruned.weights)} weights, but the original has {len(wide_weights)}; pass the result of "
            "prune_model(original, graph, selection)"
        )
    for full, small in zip(wide_weights, pruned.weights, strict=True):
        i = index[id(full)]
        value = np.zeros(full.shape, small.numpy().dtype)
        target = np.ix_(*(np.flatnonzero(masks.get(i, {}).get(a, np.ones(d, bool))) for a, d in enumerate(full.shape)))
        if value[target].shape != tuple(small.shape):
            raise InvalidArgumentError(
                f"{small.path} has shape {tuple(small.shape)}, but the selection gives {value[target].shape}"
            )
        value[target] = small.numpy()
        values.append(value)
    wide = copy_model(original)
    wide.set_weights(values)
    return wide


def copy_model(model: keras.Model) -> keras.Model:
    """Returns an uncompiled plain copy of a model, weights included, that shares nothing with it."""
    return _rebuilt(model, {id(w): w.numpy() for w in model.weights}, lambda copy: None)


def _rebuilt(model: keras.Model, values: dict[int, np.ndarray], change: Callable[[keras.Model], None]) -> keras.Model:
    """Rebuilds a plain model from its config, changes it by `change`, and sets `values`, by the `id` of each weight."""
    with undone() as journal:
        plain = inlined(model, journal)
        keep_attributes(plain, journal)
        return _copied(model, plain, values, change)


def _copied(
    model: keras.Model, plain: keras.Model, values: dict[int, np.ndarray], change: Callable[[keras.Model], None]
) -> keras.Model:
    """Rebuilds the plain model of a model, whose layers have their names in it."""
    traced = trace(plain)
    classes = {type(op) for op in (plain, *traced.operations)}
    custom = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
    # Variables made in a stateless scope get their values when it ends, so no initializer runs for nothing.
    with strategy_scope(plain), internals.stateless():
        try:
            copy = _from_config(plain, custom)
        except Exception as error:  # get_config or the constructor of a layer may raise anything
            raise UnsupportedModelError(_why_not_rebuilt(model, plain, custom, error)) from error
        weights, variables = plain.weights, copy.weights
        if [tuple(w.shape) for w in variables] != [tuple(w.shape) for w in weights]:
            raise UnsupportedModelError(
                f"model {model.name!r} rebuilt from its config has other weights than the original, for example because "
                f"a layer is shared between a model and a model nested in it{_in_place(model, plain)}"
            )
        if unlike := first_unlike(traced, trace(copy)):
            raise UnsupportedModelError(
                f"model {model.name!r} cannot be copied: {unlike.name!r} ({type(unlike).__name__}) computes something "
                "else when it is rebuilt from its config, and would do so after loading a saved file. Keras saves functions "
                "only by name. Give the layer a function with a unique name, registered with "
                f"keras.saving.register_keras_serializable, and let get_config return everything that it depends on"
                f"{_in_place(model, plain)}"
            )
        change(copy)
        for variable, weight in zip(variables, weights, strict=True):
            internals.set_first_value(variable, values[id(weight)])
    for operation in trace(copy).operations:
        if hasattr(operation, "finalize_state"):  # Normalization derives constants from its weights
            operation.finalize_state()
    return copy


def _from_config(thing: keras.Operation, custom: dict[str, type]) -> Any:
    config = keras.saving.serialize_keras_object(thing)
    config.pop("compile_config", None)
    return keras.saving.deserialize_keras_object(config, custom_objects=custom, safe_mode=False)


def _why_not_rebuilt(model: keras.Model, plain: keras.Model, custom: dict[str, type], error: Exception) -> str:
    """Names the layer that cannot be rebuilt, with everything that Keras says about it except the example."""
    culprit = "it"
    for operation in trace(plain).operations:
        if isinstance(operation, keras.Layer) and not isinstance(operation, keras.Model):
            try:
                _from_config(operation, custom)
            except Exception as own:  # the code of the layer may raise anything
                culprit, error = f"layer {operation.name!r} ({type(operation).__name__})", own
                break
    text = " ".join(str(error).partition("Example:")[0].split()).rstrip(".")
    text = text if len(text) <= 800 else f"{text[:400]} [...] {text[-400:]}"
    how = _in_place(model, plain)
    return f"model {model.name!r} cannot be copied: {culprit} cannot be rebuilt from its config: {text}{how}"


def _in_place(model: keras.Model, plain: keras.Model) -> str:
    """Returns how to continue without a copy, if possible, as the end of a message."""
    for candidate, how in ((model, ""), (plain, " after model = keras_pcp.inline_blocks(model)")):
        try:
            check_live(candidate)
        except UnsupportedModelError:
            continue
        return f". keras_pcp.shrink needs no copy and works on this model in place{how}"
    return ""

"""Checks a criterion."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_pcp.criteria import Criterion, get
from keras_pcp.graph.build import build_graph
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.statistics import Statistics
from keras_pcp.testing.networks import SEED, close, networks, require, samples_for


def check_criterion(criterion: str | Criterion, *, data: bool = True, permutable: bool = True) -> None:
    """Checks on tiny models that a criterion does what the rest of keras_pcp relies on.

    The models are a residual network, a concatenation with two outputs, a depthwise convolution, and a dense layer
    behind a flatten. The criterion must meet these conditions:

    - It returns one finite score for each channel.
    - The same seed gives the same scores.
    - Renumbering the channels of a group renumbers its scores.
    - Weights and metrics of the model stay as they are.
    - If it needs data, it is marked with `keras_pcp.statistics.needs_data`.

    Args:
        criterion: a name or a callable `(group, statistics) -> float array (num_channels,)`.
        data: whether to pass samples on which the criterion can compute gradients and features.
        permutable: False for a baseline whose scores do not come from the model, such as random numbers.

    Raises:
        AssertionError: a condition does not hold. The message says which.

    Example:
        >>> import numpy as np, keras_pcp.testing
        >>> def deviation(group, statistics):
        ...     [kernel] = group.slices_of("produce", "kernel")[:1]
        ...     values = np.moveaxis(statistics.weights[kernel.weight], kernel.axis, 0)[kernel.positions]
        ...     return values.reshape(group.num_channels, -1).std(axis=1)
        >>> keras_pcp.testing.check_criterion(deviation)
        >>> keras_pcp.testing.check_criterion(lambda group, statistics: np.arange(group.num_channels))
        Traceback (most recent call last):
        AssertionError: on a residual network, renumbering the channels of group 'stem' does not renumber their scores
    """
    function = get(criterion)
    for what, model in networks():
        graph = build_graph(model)
        samples = samples_for(model)
        model.test_on_batch(*samples)
        before = _state(model)
        scores = _scores(what, function, model, graph, samples if data else None)
        again = _scores(what, function, model, graph, samples if data else None)
        for name in graph.groups:
            require(
                close(scores[name], again[name]),
                f"on {what}, group {name!r} gets different scores when it is scored again with the same seed",
            )
        if data and not getattr(function, "needs_data", False):
            _check_without_data(what, function, model, graph)
        untouched = all(np.array_equal(a, b) for a, b in zip(before, _state(model), strict=True))
        require(untouched, f"on {what}, the criterion changes weights, metrics or the optimizer of the model")
        if permutable:
            orders = _permute(model, graph)
            permuted = _scores(what, function, model, graph, samples if data else None)
            for name, order in orders.items():
                require(
                    close(permuted[name], scores[name][order]),
                    f"on {what}, renumbering the channels of group {name!r} does not renumber their scores",
                )


def _scores(
    what: str, function: Callable, model: keras.Model, graph: ChannelGraph, samples: Any
) -> Mapping[str, np.ndarray]:
    statistics = Statistics(model, graph, samples, SEED)
    found = {}
    for group in graph:
        score = np.asarray(function(group, statistics), float)
        where, expected = f"on {what}, scores of group {group.name!r}", (group.num_channels,)
        require(score.shape == expected, f"{where} must have the shape {expected}, got {score.shape}")
        require(np.isfinite(score).all(), f"{where} are not finite: {score}")
        found[group.name] = score
    return found


def _check_without_data(what: str, function: Callable, model: keras.Model, graph: ChannelGraph) -> None:
    try:
        _scores(what, function, model, graph, None)
    except Exception as error:
        raise AssertionError(
            f"on {what}, the criterion fails without data ({error}); if it uses gradients or features, mark it with "
            "keras_pcp.statistics.needs_data"
        ) from error


def _permute(model: keras.Model, graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Renumbers the channels of all groups at random, and returns the orders: channel c was channel order[c] before."""
    rng = np.random.default_rng(SEED)
    values = [w.numpy() for w in model.weights]
    orders = {}
    for group in graph:
        orders[group.name] = order = rng.permutation(group.num_channels)
        for s in group.slices:
            table = s.positions[np.argsort(s.channels, kind="stable")].reshape(group.num_channels, -1)
            along = np.moveaxis(values[s.weight], s.axis, 0)  # a view
            along[table] = along[table[order]]
    for w, value in zip(model.weights, values, strict=True):
        w.assign(value)
    return orders


def _state(model: keras.Model) -> list[np.ndarray]:
    return [v.numpy() for v in (*model.variables, *model.metrics_variables, *model.optimizer.variables)]

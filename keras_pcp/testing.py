"""Checks for what you add to keras_pcp, for use in your own tests."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_pcp.channels import ChannelGraph
from keras_pcp.criteria import Criterion, get
from keras_pcp.graph import build_graph
from keras_pcp.statistics import Statistics

L = keras.layers
_SAMPLES, _SEED, _TOLERANCE = 12, 1, 1e-4


def check_criterion(criterion: str | Criterion, *, data: bool = True, permutable: bool = True) -> None:
    """Checks that a criterion does what the rest of keras_pcp relies on, on tiny models of its own.

    On a residual network, a concatenation with two outputs, a depthwise convolution and a dense layer behind a flatten:
    there is one finite score for each channel; the same seed gives the same scores; renumbering the channels of a group
    renumbers its scores; weights and metrics of the model stay as they are; and a criterion that cannot do without data
    says so by `keras_pcp.statistics.needs_data`.

    Args:
        criterion: a name or a callable `(group, statistics) -> float array (num_channels,)`.
        data: whether to give the criterion samples to compute gradients and features on.
        permutable: False for a control whose scores do not come from the model, such as random numbers.

    Raises:
        AssertionError: what does not hold, in a sentence.

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
    for what, model in _models():
        graph = build_graph(model)
        samples = _samples(model)
        model.test_on_batch(*samples)
        before = _state(model)
        scores = _scores(what, function, model, graph, samples if data else None)
        again = _scores(what, function, model, graph, samples if data else None)
        for name in graph.groups:
            _require(
                _close(scores[name], again[name]),
                f"on {what}, group {name!r} gets other scores when it is scored again with the same seed",
            )
        if data and not getattr(function, "needs_data", False):
            _check_without_data(what, function, model, graph)
        untouched = all(np.array_equal(a, b) for a, b in zip(before, _state(model), strict=True))
        _require(untouched, f"on {what}, the criterion changes weights, metrics or the optimizer of the model")
        if permutable:
            orders = _permute(model, graph)
            permuted = _scores(what, function, model, graph, samples if data else None)
            for name, order in orders.items():
                _require(
                    _close(permuted[name], scores[name][order]),
                    f"on {what}, renumbering the channels of group {name!r} does not renumber their scores",
                )


def _scores(
    what: str, function: Callable, model: keras.Model, graph: ChannelGraph, samples: Any
) -> Mapping[str, np.ndarray]:
    statistics = Statistics(model, graph, samples, _SEED)
    found = {}
    for group in graph:
        score = np.asarray(function(group, statistics), float)
        where, expected = f"on {what}, scores of group {group.name!r}", (group.num_channels,)
        _require(score.shape == expected, f"{where} must have the shape {expected}, got {score.shape}")
        _require(np.isfinite(score).all(), f"{where} are not finite: {score}")
        found[group.name] = score
    return found


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_without_data(what: str, function: Callable, model: keras.Model, graph: ChannelGraph) -> None:
    try:
        _scores(what, function, model, graph, None)
    except Exception as error:
        raise AssertionError(
            f"on {what}, the criterion fails without data ({error}); if it reads gradients or features, mark it with "
            "keras_pcp.statistics.needs_data"
        ) from error


def _permute(model: keras.Model, graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Renumbers the channels of all groups at random and returns the orders: channel c is what order[c] was."""
    rng = np.random.default_rng(_SEED)
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


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(expected).max())


def _state(model: keras.Model) -> list[np.ndarray]:
    return [v.numpy() for v in (*model.variables, *model.metrics_variables, *model.optimizer.variables)]


def _samples(model: keras.Model) -> tuple:
    rng = np.random.default_rng(_SEED)
    x = rng.normal(size=(_SAMPLES, *model.input_shape[1:])).astype("float32")
    labels = [rng.integers(0, t.shape[-1], _SAMPLES) for t in model.outputs]
    return x, labels if len(labels) > 1 else labels[0]


def _models() -> Iterator[tuple[str, keras.Model]]:
    networks = {
        "a residual network": _residual,
        "a concatenation with two outputs": _concatenation,
        "a depthwise convolution": _depthwise,
        "a dense layer behind a flatten": _flatten,
    }
    for what, network in networks.items():
        model = network(keras.Input((6, 6, 2)))
        rng = np.random.default_rng(_SEED)
        for w in model.weights:
            if len(w.shape) > 1:
                w.assign(rng.normal(0, (2 / np.prod(w.shape[:-1])) ** 0.5, w.shape))
            else:
                w.assign(rng.uniform(0.5, 1.5, w.shape))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        count = len(model.outputs)
        model.compile(
            "sgd", [loss] * count if count > 1 else loss, run_eagerly=True,
            metrics=[["accuracy"]] * count if count > 1 else ["accuracy"],
        )  # fmt: skip
        yield what, model


def _block(x: Any, filters: int, kernel: int = 3, name: str | None = None, activation: str = "relu") -> Any:
    x = L.Conv2D(filters, kernel, padding="same", use_bias=False, name=name)(x)
    return L.Activation(activation)(L.BatchNormalization()(x))


def _residual(i: Any) -> keras.Model:
    x = _block(i, 5, name="stem")
    y = _block(_block(x, 4), 5, activation="linear")
    return _classify(i, L.ReLU()(L.Add()([x, y])))


def _concatenation(i: Any) -> keras.Model:
    a, b = _block(i, 4), _block(i, 3, 1)
    x = L.BatchNormalization()(L.Concatenate()([a, b, a]))
    model = _classify(i, _block(x, 5))
    return keras.Model(i, [model.output, L.Dense(2)(L.GlobalMaxPooling2D()(a))])


def _depthwise(i: Any) -> keras.Model:
    x = L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(_block(i, 4))
    return _classify(i, _block(L.ReLU()(L.BatchNormalization()(x)), 5, 1))


def _flatten(i: Any) -> keras.Model:
    x = L.Flatten()(L.MaxPooling2D()(_block(i, 4)))
    return keras.Model(i, L.Dense(3)(L.ReLU()(L.BatchNormalization()(L.Dense(5)(x)))))


def _classify(i: Any, x: Any) -> keras.Model:
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))

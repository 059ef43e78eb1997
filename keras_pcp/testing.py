"""Checks for custom criteria and rules, for use in your tests."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.criteria import Criterion, get
from keras_pcp.errors import UnsupportedModelError
from keras_pcp.fit.metric import Measuring
from keras_pcp.fit.moments import Steps, moments
from keras_pcp.fit.observation import Moment
from keras_pcp.fit.run import Run
from keras_pcp.graph.build import build_graph
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.graph.rules import find_rule
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import smallest
from keras_pcp.repair.loss_terms import LossTerms
from keras_pcp.schedules import linear
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.statistics import Statistics
from keras_pcp.strategies.protocol import Action, FitLength, Strategy
from keras_pcp.surgery.copies import prune_model
from keras_pcp.surgery.in_place import shrink
from keras_pcp.surgery.masks import masked

L = keras.layers
_SAMPLES, _SEED, _TOLERANCE = 12, 1, 1e-4


def check_criterion(criterion: str | Criterion, *, data: bool = True, permutable: bool = True) -> None:
    """Checks on tiny models that a criterion does what the rest of keras_pcp relies on.

    The models are a residual network, a concatenation with two outputs, a depthwise convolution, and a dense layer behind a
    flatten. The criterion must meet these conditions:

    - It gives one finite score for each channel.
    - The same seed gives the same scores.
    - Renumbering the channels of a group renumbers its scores.
    - Weights and metrics of the model stay as they are.
    - If it needs data, it is marked with `keras_pcp.statistics.needs_data`.

    Args:
        criterion: a name or a callable `(group, statistics) -> float array (num_channels,)`.
        data: whether to pass samples on which the criterion can compute gradients and features.
        permutable: False for a baseline whose scores do not come from the model, such as random numbers.

    Raises:
        AssertionError: a condition does not hold; the message says which.

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
                f"on {what}, group {name!r} gets different scores when it is scored again with the same seed",
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


def check_rule(
    layer: keras.Layer | Callable[[], keras.Layer], input_shape: Sequence[int] | Sequence[Sequence[int]]
) -> None:
    """Checks the rule of a layer on a tiny model that has the layer between two dense layers.

    The graph must be built, and the cost of every layer must be known. Then some channels are removed. The pruned model

    - computes what the masked model computes (unless the rule calls `site.mark_inexact`);
    - costs what was predicted;
    - computes the same after it has been saved and loaded;
    - computes the same as the model after `shrink`.

    A rule that freezes everything meets all conditions.

    Args:
        layer: the layer, which must not have been called before, or its class, if that takes no arguments. All float
            weights of the layer get random values.
        input_shape: shape of the input without the batch axis, all sizes known, channels last. For a layer that takes a
            list of inputs, a list of such shapes.

    Raises:
        AssertionError: a condition does not hold; the message says which.

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
        >>> _ = keras_pcp.register_rule(Scaled)(lambda site: site.inputs[0])
        >>> keras_pcp.testing.check_rule(Scaled(name="scale"), (8, 8, 4))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: the rule of 'scale' (Scaled) lets channels be removed but says nothing of the layer's weight ...
    """
    layer = layer if isinstance(layer, keras.Layer) else layer()
    what = f"{layer.name!r} ({type(layer).__name__})"
    _require(find_rule(layer) is not None, f"{what} has no rule; register one with keras_pcp.register_rule")
    shapes = input_shape if isinstance(input_shape[0], Sequence) else [input_shape]
    model = _around(layer, shapes)
    try:
        graph = build_graph(model)
    except UnsupportedModelError as error:
        raise AssertionError(str(error)) from error
    for name, why in count_cost(graph).uncounted.items():
        raise AssertionError(f"the cost of {name!r} is unknown: {why}")
    x = [np.random.default_rng(_SEED).normal(size=(4, *t.shape[1:])).astype("float32") for t in model.inputs]
    selection = Selection()
    for selection in _selections(graph):
        _check_pruned(what, model, graph, selection, x)
    expected = _outputs(prune_model(model, graph, selection), x)
    shrink(model, graph, selection)
    _require(
        _alike(_outputs(model, x), expected), f"{what} computes different outputs after shrink than after prune_model"
    )


def check_strategy(strategy: Strategy, *, max_macs: float = 0.6, reaches: bool = True) -> None:
    """Checks that a strategy does what the rest of keras_pcp relies on, in short training runs of tiny models of its own.

    On a residual network, a concatenation with two outputs, a depthwise convolution and a dense layer behind a flatten: the
    steps at which it wants to be asked rise; it comes to an end at each of them; what it answers can be done and leaves
    every group a channel; after the last moment the model is at or below the limit; its state survives JSON; and the same
    seed gives the same actions.

    Args:
        strategy: the strategy.
        max_macs: the limit, a fraction.
        reaches: False for a strategy that is not meant to reach the limit, such as one that only watches.

    Raises:
        AssertionError: what does not hold, in a sentence.

    Example:
        >>> import keras_pcp.testing
        >>> keras_pcp.testing.check_strategy(keras_pcp.strategies.OneShot())
    """
    for (what, model), (_, again) in zip(_models(), _models(), strict=True):
        done = _trained_with(what, model, strategy, max_macs, through_json=True)
        other = _trained_with(what, again, strategy, max_macs, through_json=False)
        same = [_written(action) for action in done] == [_written(action) for action in other]
        _require(
            same,
            f"on {what}, the strategy does something else when its state has been JSON in between, or when it runs again "
            "with the same seed; its state must hold all that it remembers, and random draws go by seen.seed",
        )
        if reaches:
            holds = count_cost(model).macs <= max_macs * count_cost(next(m for w, m in _models() if w == what)).macs
            _require(holds, f"on {what}, the model is above the limit after the last moment")


def _written(action: Action) -> tuple:
    """Returns an action to compare; groups by their order, since layers of two models have other names."""
    return action.how, [mask.tolist() for mask in action.keep.keep.values()]


_STEPS, _EPOCH, _MOST_ACTIONS = 24, 4, 1000


def _trained_with(
    what: str, model: keras.Model, strategy: Strategy, max_macs: float, through_json: bool
) -> list[Action]:
    """Trains a model for some steps while a strategy prunes it; returns its actions."""
    keras.utils.set_random_seed(_SEED)
    samples = _samples(model)
    problem = Problem.of(build_graph(model), Limits(max_macs=max_macs))
    run = Run(model, problem, strategy, "l1", samples, Measuring(seed=_SEED))
    steps = strategy.when(problem, FitLength(_STEPS, _EPOCH, 0.1, 0.9))
    due = {moment.step: moment for moment in moments(steps, linear, _STEPS, Steps(per_epoch=_EPOCH))}
    terms, actions = LossTerms(model, strategy.loss_terms(problem, run.state)), []
    with terms.added() if terms.terms else nullcontext():
        for step in range(_STEPS):
            if step in due:
                actions += _actions(what, run, due[step])
                if terms.terms:
                    terms.set(strategy.loss_terms(problem, run.state))
            if through_json:
                run.from_json(json.loads(json.dumps(run.to_json())))
            model.train_on_batch(*samples)
    return actions


def _actions(what: str, run: Run, moment: Moment) -> list[Action]:
    found: list[Action] = []
    while len(found) < _MOST_ACTIONS:
        action = run.ask(moment, fresh=not found)
        found += [] if action is None else [action]
        if action is not None:
            run.carry_out(action, action.more)
        if action is None or not action.more:
            run.carry_out(None)
            return found
    raise AssertionError(f"on {what}, the strategy asks to be asked again without an end (Action.more)")


def _around(layer: keras.Layer, shapes: Sequence[Sequence[int]]) -> keras.Model:
    inputs = [keras.Input((*shape[:-1], 3)) for shape in shapes]
    made = [L.Dense(shape[-1], name=f"before_{k}")(i) for k, (i, shape) in enumerate(zip(inputs, shapes, strict=True))]
    outputs = tree.flatten(layer(made if len(made) > 1 else made[0]))
    for y in outputs:
        known = None not in y.shape[1:]
        _require(
            known, f"{layer.name!r} turns {shapes} into {y.shape}; choose a shape from which Keras infers all sizes"
        )
    model = keras.Model(
        inputs if len(inputs) > 1 else inputs[0],
        [L.Dense(3, name=f"after_{k}")(L.Flatten()(y)) for k, y in enumerate(outputs)],
    )
    rng = np.random.default_rng(_SEED)
    for w in model.weights:
        if "float" in str(w.dtype):
            w.assign(rng.normal(0, 0.5, w.shape) if len(w.shape) > 1 else rng.uniform(0.5, 1.5, w.shape))
    return model


def _selections(graph: ChannelGraph) -> Iterator[Selection]:
    """Removes the first channel of each group, as many as possible from each group, and every second one of all groups."""
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
        _require(
            _alike(found, expected),
            f"{where} computes different outputs than with these channels set to 0 where they are read. Either the rule "
            "passes on channels that the layer mixes, or it assigns positions of a weight to the wrong channels. (If the "
            "layer only takes statistics over channels, call site.mark_inexact)",
        )
    predicted, counted = count_cost(graph, selection), count_cost(small)
    for name in ("macs", "params", "bytes"):
        a, b = getattr(predicted, name), getattr(counted, name)
        _require(a == b, f"{where} has {b:,.0f} {name}, but {a:,.0f} were predicted")
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
    _require(
        _alike(_outputs(loaded, x), found), f"{where} computes different outputs after it has been saved and loaded"
    )


def _outputs(model: keras.Model, x: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(y) for y in tree.flatten(model(x if len(x) > 1 else x[0]))]


def _alike(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return all(a.shape == b.shape and _close(a, b) for a, b in zip(found, expected, strict=True))


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
            f"on {what}, the criterion fails without data ({error}); if it uses gradients or features, mark it with "
            "keras_pcp.statistics.needs_data"
        ) from error


def _permute(model: keras.Model, graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Renumbers the channels of all groups at random and returns the orders: channel c was channel order[c] before."""
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
            "sgd",
            [loss] * count if count > 1 else loss,
            run_eagerly=True,
            metrics=[["accuracy"]] * count if count > 1 else ["accuracy"],
        )
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

"""Wrong arguments are refused at once, with what was given, what was expected and what to do next."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pcp
from keras_pcp import criteria, schedules
from keras_pcp.errors import InvalidArgumentError, PruningError, UnsupportedModelError
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.support.data import take_samples

L = keras.layers
NAN = float("nan")


def small():
    x = keras.Input((4,))
    y = L.Dense(6, name="hidden")(x)
    y = L.Activation("relu")(L.BatchNormalization(name="bn")(y))
    model = keras.Model(x, L.Dense(3, name="out")(y))
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"], run_eagerly=True
    )
    return model


def samples(count=16):
    return np.random.default_rng(0).normal(size=(count, 4)), np.arange(count) % 3


@pytest.fixture(scope="module")
def shared():
    model = small()
    graph = keras_pcp.build_graph(model)
    return model, graph, keras_pcp.score_channels(model, graph)


@pytest.fixture(scope="module")
def half():
    return keras_pcp.Selection({"hidden": np.arange(6) < 3})


def with_nan():
    x, y = samples()
    x[3, 1] = NAN
    return x, y


# --- Arguments of the wrong type ---------------------------------------------------------------------------------------

WRONG = {
    "a dict as selection": lambda m, g, s: keras_pcp.prune_model(m, g, {"hidden": np.arange(6) < 3}),
    "a dict as selection in masked": lambda m, g, s: keras_pcp.masked(m, g, {}).__enter__(),
    "a model as graph": lambda m, g, s: keras_pcp.select_by_ratio(m, s, 0.5),
    "a model as graph in score_channels": lambda m, g, s: keras_pcp.score_channels(m, m),
    "a model as graph in shrink": lambda m, g, s: keras_pcp.shrink(m, m, keras_pcp.Selection()),
    "a model as graph in inspect_graph": lambda m, g, s: keras_pcp.inspect_graph(m),
    "a graph as model": lambda m, g, s: keras_pcp.prune_model(g, g, keras_pcp.Selection()),
    "a path as model": lambda m, g, s: keras_pcp.build_graph("model.keras"),
    "a path as model in inline_blocks": lambda m, g, s: keras_pcp.inline_blocks("model.keras"),
    "an int as model_or_graph": lambda m, g, s: keras_pcp.count_cost(3),
    "an int as pruned": lambda m, g, s: keras_pcp.widen_model(3, m, g, keras_pcp.Selection()),
    "an int as the pruned one of refit": lambda m, g, s: keras_pcp.refit(m, 3, g, keras_pcp.Selection(), samples()),
    "an int as model of reestimate_batch_norm": lambda m, g, s: keras_pcp.reestimate_batch_norm(3, samples()),
    "an array as scores": lambda m, g, s: keras_pcp.select_by_ratio(g, np.ones(6), 0.5),
    "scores of strings": lambda m, g, s: keras_pcp.select_by_cost(g, {"hidden": ["a"] * 6}, max_macs=0.5),
    "a str as pruning_ratio": lambda m, g, s: keras_pcp.select_by_ratio(g, s, "half"),
    "a list as scope": lambda m, g, s: keras_pcp.select_by_ratio(g, s, 0.5, scope=[]),
    "a negative seed": lambda m, g, s: keras_pcp.score_channels(m, g, "random", seed=-1),
    "a str as seed": lambda m, g, s: keras_pcp.score_channels(m, g, "random", seed="a"),
    "a criterion that cannot be called like that": lambda m, g, s: keras_pcp.score_channels(m, g, lambda group: 1),
    "an int as criterion": lambda m, g, s: keras_pcp.score_channels(m, g, 3),
    "a list as criterion": lambda m, g, s: keras_pcp.score_channels(m, g, ["l1"]),
    "a criterion that returns strings": lambda m, g, s: keras_pcp.score_channels(m, g, lambda group, stats: "abc"),
    "a list as group name": lambda m, g, s: g[["hidden"]],
    "a set as masks": lambda m, g, s: keras_pcp.Selection({"hidden"}),
    "channel numbers as mask": lambda m, g, s: keras_pcp.Selection({"hidden": [0, 2]}),
    "an empty mask": lambda m, g, s: keras_pcp.Selection({"hidden": np.zeros(0, bool)}),
    "a ragged mask": lambda m, g, s: keras_pcp.Selection({"hidden": [[True], [True, False]]}),
    "a mask of another length in after": lambda m, g, s: keras_pcp.Selection({"a": [True, False]}).after(
        keras_pcp.Selection({"a": [True] * 3})
    ),
    "JSON without channels": lambda m, g, s: keras_pcp.Selection.from_json({"hidden": {}}),
    "JSON with a channel too many": lambda m, g, s: keras_pcp.Selection.from_json(
        {"hidden": {"channels": 2, "removed": [2]}}
    ),
    "an int as frozen_layers": lambda m, g, s: keras_pcp.build_graph(m, frozen_layers=3),
    "numbers as frozen_layers": lambda m, g, s: keras_pcp.build_graph(m, frozen_layers=[3]),
    "a dict as on_unknown": lambda m, g, s: keras_pcp.build_graph(m, on_unknown={}),
    "a str as samples": lambda m, g, s: keras_pcp.Measuring(samples="all"),
    "a bool as samples": lambda m, g, s: keras_pcp.Measuring(samples=True),
    "a str as step": lambda m, g, s: keras_pcp.strategies.Progressive(step="0.1"),
    "NaN as confidence": lambda m, g, s: keras_pcp.strategies.Progressive(confidence=NAN),
    "a wrong scope": lambda m, g, s: keras_pcp.strategies.OneShot(scope="all"),
    "a str as reestimate_batch_norm": lambda m, g, s: keras_pcp.Measuring(reestimate_batch_norm="no"),
    "a str as weight": lambda m, g, s: keras_pcp.Distillation(weight="0.5", loss=keras.losses.MeanSquaredError()),
    "a plain loss as distillation loss": lambda m, g, s: keras_pcp.Distillation(loss=keras.losses.MeanSquaredError()),
    "a str as reversal weight": lambda m, g, s: keras_pcp.GradientReversal("1"),
    "a str as threshold": lambda m, g, s: keras_pcp.PseudoLabels(threshold="0.9"),
    "a str as scales": lambda m, g, s: keras_pcp.adaptation.MeanDiscrepancy(scales="ab"),
    "a str as maximum": lambda m, g, s: keras_pcp.adaptation.ReversalSchedule(maximum="1"),
    "a str as steps": lambda m, g, s: keras_pcp.adaptation.AnnealedLearningRate(steps="10"),
    "an int as head": lambda m, g, s: keras_pcp.build_dann(m, 3, L.Dense(1)),
    "a str as t": lambda m, g, s: schedules.cubic("a"),
    "a str as samples of a criterion": lambda m, g, s: criteria.Chip("8"),
    "an int as rule": lambda m, g, s: keras_pcp.register_rule(L.Dense, replace=True)(3),
    "no class to register": lambda m, g, s: keras_pcp.register_rule()(lambda site: None),
    "an int as path": lambda m, g, s: keras_pcp.measure_latency(3),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_of_the_wrong_type_is_refused_with_what_was_expected(case, shared):
    with pytest.raises(InvalidArgumentError, match=r"must be|needs|takes|no channel"):
        WRONG[case](*shared)


def test_the_message_says_what_was_given_and_what_to_do_next(shared):
    model, graph, scores = shared
    with pytest.raises(
        InvalidArgumentError, match=r"graph must be a ChannelGraph, got <Functional.*build_graph\(model\)"
    ):
        keras_pcp.select_by_ratio(model, scores, 0.5)
    with pytest.raises(
        InvalidArgumentError, match=r"selection must be a keras_pcp.Selection, got \{'hidden'.*\(dict\)"
    ):
        keras_pcp.prune_model(model, graph, {"hidden": [True]})


OPTIONS = {
    "strategy": ["progressive", keras_pcp.strategies.Progressive, 0, {}],
    "distillation": [0.5, True, ""],
    "deliver": ["label", 3],
    "frozen_layers": [3, [3], {"out": 1}],
    "schedule": [
        None,
        "cubic",
        lambda: 1,
        lambda t: "a",
        lambda t: NAN if t < 1 else 1.0,
        lambda t: 1 - t,
        lambda t: t / 2,
    ],
    "criterion": [None, 3, [], ["l1", None], lambda group: 1],
    "begin": ["0.1", NAN, True],
    "end": [None, 0.1, NAN],
    "on_unknown": [None, []],
    "validation_data": [None, 3, "data", {"x": 1}, keras_pcp.strategies.Progressive],
    "refit_data": [3, "data"],
    "max_macs": ["0.5", True, NAN, 1.5, -1, 10**400, 1j],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in OPTIONS.items() for v in values])
def test_an_option_of_the_callback_is_refused_when_it_is_made(name, value):
    with pytest.raises(InvalidArgumentError):
        keras_pcp.ProgressivePruning(**{"max_macs": 0.5, "validation_data": samples(), name: value})


@pytest.mark.parametrize("name", ["strategy", "criterion", "validation_data", "refit_data", "max_macs"])
def test_an_option_of_search_widths_is_refused(name, shared):
    for value in OPTIONS[name]:
        with pytest.raises(InvalidArgumentError):
            keras_pcp.search_widths(shared[0], **{"max_macs": 0.5, "validation_data": samples(), name: value})


def test_numbers_of_numpy_and_lists_of_bools_are_taken(shared, half):
    _, graph, scores = shared
    found = keras_pcp.select_by_ratio(graph, scores, np.float32(0.5), min_channels=np.int64(2), multiple_of=np.int8(1))
    assert found.num_removed == 3
    assert keras_pcp.Selection({"hidden": [True] * 3 + [False] * 3}) == half
    strategy = keras_pcp.strategies.Progressive(step=np.int64(2), groups_per_round=np.int64(1))
    keras_pcp.Measuring(samples=np.int32(8), seed=np.int64(1))
    assert (
        strategy.rounds(Problem.of(graph, Limits(max_macs=21))) == 2
    )  # of 6 channels with 7 MACs each, 3 go, 2 a round
    keras_pcp.ProgressivePruning(max_macs=np.float32(0.5), max_params=np.int64(30), validation_data=samples())


def test_what_a_callable_of_the_caller_raises_passes_through(shared):
    def failing(*args):
        raise ZeroDivisionError("mine")

    model, graph, _ = shared
    with pytest.raises(ZeroDivisionError, match="mine"):
        keras_pcp.score_channels(model, graph, failing)
    with pytest.raises(ZeroDivisionError, match="mine"):
        keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=samples(), schedule=failing)
    with pytest.raises(ZeroDivisionError, match="mine"):
        keras_pcp.search_widths(model, max_macs=0.5, validation_data=failing)


@pytest.mark.parametrize(
    "result",
    [
        3,
        "ab",
        [],
        [None, None],
        {"a": 1},
        keras_pcp.graph.rules.Labels(7, np.arange(3)),
        keras_pcp.graph.rules.Labels(1, "abc"),
    ],
    ids=str,
)
def test_what_a_rule_returns_has_to_be_labels_of_each_output(result):
    class Doubled(L.Layer):
        def call(self, x):
            return 2 * x

    keras_pcp.register_rule(Doubled)(lambda site: result)
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(Doubled(name="doubled")(L.Dense(3)(x))))
    with pytest.raises(UnsupportedModelError, match=r"rule of layer 'doubled' \(Doubled\)"):
        keras_pcp.build_graph(model)


# --- Data --------------------------------------------------------------------------------------------------------------

X, Y = samples()


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


DATA = {
    "an unbatched dataset": (dataset(X, Y), r"\.batch\("),
    "an unbatched dataset with vectors as labels": (dataset(X, np.eye(3)[Y]), r"\.batch\("),
    "a dataset of dicts": (tf.data.Dataset.from_tensor_slices({"x": X, "y": Y}).batch(4), r"\.map\("),
    "a dict": ({"x": X, "y": Y}, "inputs and the labels"),
    "a function": (samples, "what the function returns"),
    "an array of objects": ((X.astype(object), Y), "numbers"),
    "strings as labels": ((X, np.array(["a"] * 16)), "numbers"),
    "ragged lists": ((X, tf.ragged.constant([[1], [2, 3]])), "numbers"),
    "lists of numbers": ((X.tolist(), Y), "np.asarray"),
    "no samples": ((X[:0], Y[:0]), "empty"),
    "a number as labels": ((X, 3), "batch axis"),
    "labels of another length": ((X, Y[:3]), "different lengths"),
    "no labels": ((X, None), "no labels"),
    "None": (None, "must be"),
    "NaN": (with_nan(), "NaN or infinite values in 1 of 16"),
    "infinite inputs": ((X * np.inf, Y), "NaN or infinite"),
    "NaN as weights": ((X, Y, np.full(16, NAN)), "NaN or infinite"),
    "weights of 0": ((X, Y, np.zeros(16)), "all sample weights"),
    "weights of 0 for every output": (
        (X, {"a": Y, "b": Y}, {"a": np.zeros(16), "b": np.zeros(16)}),
        "all sample weights",
    ),
    "a dataset without an end": (dataset(X, Y).batch(4).repeat(), "without an end"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used_is_refused_with_what_to_do(case):
    data, message = DATA[case]
    with pytest.raises(InvalidArgumentError, match=message):
        take_samples(data, None, 0)


def test_weights_of_0_for_one_output_of_two_and_labels_of_nan_are_taken():
    take_samples((X, {"a": Y, "b": Y}, {"a": np.zeros(16), "b": np.ones(16)}), None, 0)
    _, y, weight = take_samples((X, np.full(16, NAN), {"a": np.ones(16), "b": None}), 8, 0)
    assert np.isnan(y).all()
    assert weight["b"] is None
    assert weight["a"].tolist() == [1] * 8


@pytest.mark.parametrize(
    "x",
    [X[:, :3], X[0], X[..., None], X.astype(str), X * 1j, [X, X]],
    ids=["narrow", "flat", "deep", "str", "complex", "two"],
)
def test_inputs_that_do_not_fit_the_model_are_refused_everywhere(x, shared, half):
    model, graph, _ = shared
    data = (x, Y[: len(x)] if isinstance(x, np.ndarray) else Y)
    pruned = keras_pcp.prune_model(model, graph, half)
    for call in (
        lambda: keras_pcp.score_channels(model, graph, "taylor", data=data),
        lambda: keras_pcp.score_channels(model, graph, "apoz", data=data),
        lambda: keras_pcp.reestimate_batch_norm(model, data),
        lambda: keras_pcp.refit(model, pruned, graph, half, data),
        lambda: keras_pcp.search_widths(model, max_macs=0.5, validation_data=data),
    ):
        with pytest.raises(InvalidArgumentError, match="does not fit the inputs"):
            call()


def test_samples_for_a_refit_that_do_not_fit_are_refused_before_the_first_step(shared):
    model = shared[0]
    x, y = samples()
    pruning = keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=(x, y), refit_data=np.ones((2, 2, 2)))
    steps = int(model.optimizer.iterations)
    with pytest.raises(InvalidArgumentError, match="refit_data does not fit the inputs"):
        model.fit(x, y, verbose=0, callbacks=[pruning])
    with pytest.raises(PruningError, match="no report before training"):
        _ = pruning.report
    assert int(model.optimizer.iterations) == steps


def test_a_model_is_no_function_that_returns_samples(shared):
    with pytest.raises(InvalidArgumentError, match=r"validation_data must be .* a function without arguments"):
        keras_pcp.search_widths(shared[0], max_macs=0.5, validation_data=keras.Model())


def test_a_floor_may_be_larger_than_any_number_of_numpy(shared):
    model, graph, _ = shared
    scores = keras_pcp.score_channels(model, graph)
    kept = keras_pcp.select_by_ratio(graph, scores, 0.9, min_channels=10**60, multiple_of=np.int64(2))
    assert not kept.removed()


def test_labels_that_do_not_suit_the_loss_are_refused_by_criteria(shared):
    model, graph, _ = shared
    with pytest.raises(InvalidArgumentError, match=r"loss of model .* cannot be computed"):
        keras_pcp.score_channels(model, graph, "taylor", data=(X, np.ones((16, 5))))


# --- Numbers that are not finite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value, shared):
    _, graph, scores = shared
    scores = {"hidden": np.where(np.arange(6) == 2, value, scores["hidden"])}
    with pytest.raises(InvalidArgumentError, match="6 finite numbers for group 'hidden'"):
        keras_pcp.select_by_ratio(graph, scores, 0.5)
    with pytest.raises(InvalidArgumentError, match="6 finite numbers for group 'hidden'"):
        keras_pcp.select_by_cost(graph, scores, max_macs=0.5)


@pytest.mark.parametrize(
    ("data", "message"), [(with_nan(), "NaN"), ((X * 1e30, Y), "moving_variance"), (with_nan()[0], "NaN")]
)
def test_reestimate_batch_norm_refuses_what_is_not_finite_and_leaves_the_model_as_it_is(data, message):
    model = small()
    before = model.get_weights()
    with pytest.raises(InvalidArgumentError, match=message):
        keras_pcp.reestimate_batch_norm(model, data, batch_size=4)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("where", ["data", "model", "pruned"])
def test_refit_refuses_what_is_not_finite_and_writes_nothing(where, shared, half):
    model, graph, _ = shared
    pruned = keras_pcp.prune_model(model, graph, half)
    model = keras.models.clone_model(model)
    model.set_weights(shared[0].get_weights())
    if where != "data":
        kernel = {"model": model, "pruned": pruned}[where].get_layer("out").kernel
        kernel.assign(keras.ops.full_like(kernel, NAN))
    before = pruned.get_weights()
    message = "NaN or infinite values in 1 of 16" if where == "data" else rf"'out' of `{where}`.*weights are not finite"
    with pytest.raises(InvalidArgumentError, match=message):
        keras_pcp.refit(model, pruned, graph, half, with_nan() if where == "data" else samples())
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, pruned.get_weights(), strict=True))


@pytest.mark.parametrize("wrong", [with_nan(), (X, np.full(16, NAN)), (X[:, :2], Y), (X, Y, np.zeros(16))])
def test_a_later_draw_of_validation_data_that_cannot_be_used_is_refused_before_anything_changes(wrong):
    model, draws, seen = small(), [], {}

    def draw():
        draws.append(1)
        seen.update(weights=model.get_weights(), slots=[v.numpy() for v in model.optimizer.variables])
        return samples() if len(draws) < 3 else wrong

    pruning = keras_pcp.ProgressivePruning(max_macs=0.3, validation_data=draw, begin=0.2, end=0.9)
    with pytest.raises(InvalidArgumentError, match="validation_data"):
        model.fit(X, Y, batch_size=4, epochs=4, verbose=0, callbacks=[pruning])
    assert len(draws) == 3
    assert all(np.array_equal(a, b) for a, b in zip(seen["weights"], model.get_weights(), strict=True))
    slots = [v.numpy() for v in model.optimizer.variables]
    assert all(np.array_equal(a, b) for a, b in zip(seen["slots"], slots, strict=True))
    model.train_on_batch(X, Y)

"""Random graphs obey the equations, and so does a small model for every fault that they have brought to light."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from random_graphs import check_model, check_seed
from zoo import assert_close, inputs_for, outputs_of

import keras_pcp


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(10, 100, 10))])
def test_random_graphs_obey_the_equations(first):
    for seed in range(first, first + 10):
        check_seed(seed)


def logits(x):
    return L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(x))


def check(inputs, outputs) -> dict[str, str]:
    """Checks the equations with a few selections; returns why layers are frozen."""
    model = keras.Model(inputs, outputs)
    reasons = {f.layer: f.reason for f in keras_pcp.build_graph(model).frozen}
    rng = np.random.default_rng(0)
    for w in model.weights:
        w.assign(rng.uniform(0.2, 1.0, w.shape))
    for seed in range(4):
        check_model(keras.models.clone_model(model), seed)
    return reasons


@pytest.mark.parametrize("layer", [L.Conv2D(4, 3), L.DepthwiseConv2D(3), L.BatchNormalization(), L.PReLU()])
def test_a_layer_that_is_called_on_fixed_channels_too_keeps_all_of_them(layer):
    i = keras.Input((5, 5, 4))
    fixed = L.GlobalMaxPooling2D()(layer(i))
    reasons = check(i, [logits(L.Conv2D(6, 1)(layer(L.Conv2D(4, 1, name="first")(i)))), L.Dense(2)(fixed)])
    assert "is shared with a call on fixed channels" in reasons["first"]


def test_a_reshape_that_is_shared_with_fixed_channels_keeps_its_target_shape():
    i = keras.Input((4, 4, 5))
    reshape = L.Reshape((16, 5))
    a, b = reshape(i), reshape(L.Conv2D(5, 1, name="first")(i))
    reasons = check(i, L.Dense(3)(L.Flatten()(L.Concatenate()([a, L.Conv1D(4, 1)(b)]))))
    assert "is shared with a call on fixed channels" in reasons["first"]


def test_a_slice_may_start_at_the_first_channel_once_those_before_are_gone():
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(4, 1, name="first")(i)
    model = keras.Model(i, logits(L.Concatenate()([L.Conv2D(3, 1)(x[..., 1:]), x])))
    graph = keras_pcp.build_graph(model)
    selection = keras_pcp.Selection({"first": np.array([False, True, False])})  # one of the slice is frozen
    pruned = keras_pcp.prune_model(model, graph, selection)
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, inputs_for(model))
    assert_close(outputs_of(pruned, inputs_for(model)), expected)
    assert pruned.get_layer("first").filters == 2


@pytest.mark.parametrize(
    ("equation", "shape", "bias"),
    [
        ("bhwc,cde->bhwde", (2, 2, 2, 3), "de"),
        ("bhwc,cd->bhwd", (2, 2, 4), "wd"),
        ("bhwc,cd->bdhw", (3, 2, 2), "d"),
        ("bhwc,c->bhwc", (2, 2, 4), "c"),
        ("bhwc,hcd->bwd", (2, 5), "d"),
        ("bhwc,wk->bhkc", (2, 6, 4), None),
    ],
)
def test_an_einsum_layer_computes_the_same_whatever_axes_its_kernel_and_bias_have(equation, shape, bias):
    i = keras.Input((2, 2, 3))
    x = L.Conv2D(4, 1, activation="tanh")(i)
    x = L.EinsumDense(equation, shape, bias_axes=bias, activation="relu")(x)
    reasons = check(i, L.Dense(3, name="logits")(L.Flatten()(x)))
    assert reasons["logits"] == "output of the model"


def test_an_einsum_layer_with_an_ellipsis_on_the_right_reads_the_second_axis():
    i = keras.Input((6, 5))
    x = L.Permute((2, 1))(L.Dense(8)(i))
    x = L.Permute((2, 1))(L.EinsumDense("ab...,bd->ad...", 7)(x))
    assert set(check(i, L.Dense(3, name="logits")(L.GlobalMaxPooling1D()(x)))) == {"logits"}


def test_a_single_channel_combined_with_a_number_is_not_frozen():
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(1, 1, name="single")(i)
    assert "single" not in check(i, logits(L.Conv2D(3, 1)(L.Conv2D(4, 1)(1 + ops.abs(x)))))


def test_limits_for_each_channel_are_constants_that_freeze_them():
    i = keras.Input((4, 4, 2))
    x = ops.clip(L.Conv2D(3, 1, name="first")(i), np.array([-1.0, -2.0, -3.0]), 1.0)
    graph = keras_pcp.build_graph(keras.Model(i, logits(L.Conv2D(4, 1)(x))))
    assert "limits" in graph.frozen[0].reason


def test_a_constant_may_be_joined_to_channels():
    i = keras.Input((4, 4, 2), batch_size=2)
    x = ops.concatenate([L.Conv2D(3, 1)(i), np.ones((2, 4, 4, 2), "float32")], axis=-1)
    assert set(check(i, logits(L.Conv2D(4, 1)(x)))) == {"logits"}


ALONG = {
    "sort": lambda x: ops.sort(x, axis=-1),
    "argsort": lambda x: ops.cast(ops.argsort(x, axis=-1), "float32"),
    "cumsum": lambda x: ops.cumsum(x, axis=-1),
    "roll": lambda x: ops.roll(x, 2, axis=-1),
    "argmax": lambda x: ops.cast(ops.argmax(x, axis=-1, keepdims=True), "float32"),
    "top_k": lambda x: ops.top_k(x, 2)[0],
    "take": lambda x: ops.take(x, np.array([0, 2]), axis=-1),
    "unstack": lambda x: ops.stack(ops.unstack(x, axis=-1)[:2], axis=-1),
    "diff": lambda x: ops.diff(x, axis=-1),
    "norm": lambda x: ops.norm(x, axis=-1, keepdims=True),
    "einsum": lambda x: ops.einsum("bhwc,bhwc->bhw", x, x)[..., None],
    "outer product": lambda x: ops.reshape(ops.einsum("bhwc,bd->bhwcd", x, ops.mean(x, axis=(1, 2))), (-1, 4, 4, 25)),
    "tensordot": lambda x: ops.tensordot(x, np.ones((5, 2), "float32"), axes=1),
    "raw convolution": lambda x: ops.conv(x, np.ones((1, 1, 5, 2), "float32")),
    "unequal repeats": lambda x: ops.repeat(x, [1, 2, 1, 1, 3], axis=-1),
    "unequal parts": lambda x: ops.array_split(x, 2, axis=-1)[0],
}


@pytest.mark.parametrize("name", ALONG)
def test_what_works_along_the_channels_freezes_them_with_its_name(name):
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(5, 1, name="first")(i)
    y = ALONG[name](x)
    y = L.Dense(2)(L.Flatten()(y)) if None not in y.shape[1:] else logits(L.Conv2D(3, 1)(y))
    assert "(" in check(i, y)["first"]


def test_an_operation_without_a_rule_is_no_obstacle_where_no_channel_reaches_it():
    i = keras.Input((4, 4, 3))
    x = L.Lambda(lambda t: t * 2, output_shape=(4, 4, 3))(i)
    graph = keras_pcp.build_graph(keras.Model(i, logits(L.Conv2D(4, 1, name="first")(x))))
    assert list(graph.groups) == ["first"]


def test_shrinking_leaves_the_inputs_alone_even_if_a_shared_layer_was_also_tried_on_them():
    i = keras.Input((4, 4, 4))
    conv = L.Conv2D(3, 1, name="second")
    x = conv(L.Conv2D(4, 1, name="first")(i))
    conv(i)  # a call that no model uses
    model = keras.Model(i, logits(x))
    graph = keras_pcp.build_graph(model)
    keras_pcp.shrink(model, graph, keras_pcp.Selection({"first": np.array([True, False, True, True])}))
    assert model.input_shape == (None, 4, 4, 4)
    assert outputs_of(model, inputs_for(model))[0].shape == (3, 3)


@pytest.mark.parametrize(("height", "is_frozen"), [(4, True), (7, False)])
def test_a_constant_that_keras_could_take_for_a_bias_keeps_the_channels(height, is_frozen):
    i = keras.Input((height, 3, 2))
    rows = np.linspace(1, 2, height, dtype="float32").reshape(height, 1, 1)
    y = L.Conv2D(3, 1)(L.Conv2D(5, 1, name="first")(i) + rows)
    assert ("first" in check(i, logits(y))) == is_frozen


@pytest.mark.parametrize("rest", [(4, 4, 5), (2, 4, 5), (3, 3, -1)])
def test_a_slice_that_takes_all_channels_takes_all_that_are_left(rest):
    i = keras.Input((4, 4, 2), batch_size=3)
    x = ops.slice(L.Conv2D(5, 1, name="first")(i), (0, 0, 0, 0), (3, *rest))
    model = keras.Model(i, logits(L.Conv2D(3, 1)(x)))
    graph = keras_pcp.build_graph(model)
    selection = keras_pcp.Selection({"first": np.array([True, False, True, True, False])})
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, inputs_for(model))
    assert_close(outputs_of(keras_pcp.prune_model(model, graph, selection), inputs_for(model)), expected)


def test_a_softmax_over_everything_is_inexact_and_no_error():
    i = keras.Input((4, 4, 2), batch_size=3)
    x = ops.softmax(L.Conv2D(5, 1, name="first")(i), axis=None)
    graph = keras_pcp.build_graph(keras.Model(i, logits(L.Conv2D(3, 1)(x))))
    assert not graph["first"].exact

"""Blocks, custom layers that hide layers, are opened; and stay closed where opening would change what they do."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from custom_blocks import ConvBlock, TwoBlocks
from keras import ops
from zoo import assert_close, classify, inputs_for, outputs_of, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.inside import INERT, look_inside
from keras_pcp.graph.trace import trace

L = keras.layers


def block_model():
    keras.utils.set_random_seed(0)
    i = keras.Input((8, 8, 3))
    x = TwoBlocks(6, name="two")(ConvBlock(7, name="one")(i))
    x = keras.Sequential([keras.Input((8, 8, 6)), ConvBlock(5), L.ReLU()], name="nested")(x)
    model = classify(x, i)
    rng = np.random.default_rng(0)
    for w in model.weights:
        if len(w.shape) == 1:
            w.assign(rng.uniform(0.5, 1.5, w.shape))
    return model


def train_a_little(model):
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 3)), rng.normal(size=(16, 4))
    return [model.train_on_batch(x, y) for _ in range(5)]


def test_the_plain_model_computes_the_same_and_shares_the_weights():
    model = block_model()
    plain, x = keras_pcp.inline_blocks(model), inputs_for(model)
    assert_close(outputs_of(plain, x), outputs_of(model, x), 1e-6)
    assert {id(w) for w in plain.weights} == {id(w) for w in model.weights}
    kinds = {type(op).__name__ for op in trace(plain).operations}
    assert {"Conv2D", "BatchNormalization", "Silu", "Mean"} <= kinds
    assert kinds.isdisjoint({"ConvBlock", "TwoBlocks"})


def test_the_plain_model_trains_the_same():
    models = [block_model(), keras_pcp.inline_blocks(block_model())]
    losses = [train_a_little(m) for m in models]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    x = inputs_for(models[0])
    assert_close(outputs_of(models[1], x), outputs_of(models[0], x), 1e-3)


def test_a_model_without_blocks_is_returned_as_it_is():
    i = keras.Input((8, 8, 3))
    model = classify(L.Conv2D(4, 3)(i), i)
    assert keras_pcp.inline_blocks(model) is model


@pytest.mark.parametrize("seed", [0, 1])
def test_pruned_inside_blocks_equals_masked(seed):
    model = block_model()
    graph = keras_pcp.build_graph(model)
    assert "conv" in graph.groups
    assert {"one", "two", "inner", "other"} <= set(graph.blocks)
    selection, x = random_selection(graph, seed), inputs_for(model)
    pruned = keras_pcp.prune_model(model, graph, selection)
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, x)
    assert_close(outputs_of(pruned, x), expected)
    predicted, counted = keras_pcp.count_cost(graph, selection), keras_pcp.count_cost(pruned)
    assert (predicted.macs, predicted.params, predicted.bytes) == (counted.macs, counted.params, counted.bytes)
    wide = keras_pcp.widen_model(pruned, model, graph, selection)
    assert_close(outputs_of(wide, x), expected)


def test_the_pruned_model_is_loaded_where_the_block_classes_are_unknown(tmp_path):
    model = block_model()
    graph = keras_pcp.build_graph(model)
    pruned, x = keras_pcp.prune_model(model, graph, random_selection(graph, 0)), inputs_for(model)
    pruned.save(tmp_path / "small.keras")
    np.save(tmp_path / "x.npy", x)
    code = "import keras, numpy as np; np.save('y.npy', keras.models.load_model('small.keras')(np.load('x.npy')))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert np.array_equal(np.load(Path(tmp_path) / "y.npy"), outputs_of(pruned, x)[0])


def test_a_live_shrink_asks_for_the_plain_model_and_works_on_it():
    model = block_model()
    graph = keras_pcp.build_graph(model)
    selection, x = random_selection(graph, 0), inputs_for(model)
    expected = outputs_of(keras_pcp.prune_model(model, graph, selection), x)
    with pytest.raises(UnsupportedModelError, match="inline_blocks"):
        keras_pcp.shrink(model, graph, selection)
    callback = keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=(x, np.zeros((3, 4))))
    model.compile("sgd", "mse")
    with pytest.raises(UnsupportedModelError, match="inline_blocks"):
        model.fit(x, np.zeros((3, 4)), epochs=5, verbose=0, callbacks=[callback])
    plain = keras_pcp.inline_blocks(model)
    keras_pcp.shrink(plain, keras_pcp.build_graph(plain), selection)
    assert_close(outputs_of(plain, x), expected)


def test_a_graph_with_blocks_is_not_taken_for_the_plain_model():
    model = block_model()
    graph = keras_pcp.build_graph(model)
    plain = keras_pcp.inline_blocks(model)
    if [w.shape for w in plain.weights] == [w.shape for w in model.weights]:
        match = "blocks such as"
    else:
        match = "call build_graph"
    with pytest.raises(InvalidArgumentError, match=match):
        keras_pcp.prune_model(plain, graph, keras_pcp.Selection())


def test_inner_layers_with_one_name_get_names_of_their_own():
    i = keras.Input((8, 8, 3))
    model = classify(ConvBlock(4, name="b")(L.Conv2D(3, 1, name="conv")(ConvBlock(4, name="a")(i))), i)
    names = [op.name for op in trace(keras_pcp.inline_blocks(model)).operations]
    assert len(set(names)) == len(names)
    assert {"conv", "a_conv", "b_conv"} <= set(names)


def test_a_lambda_of_keras_operations_is_opened():
    i = keras.Input((8, 8, 3))
    model = classify(L.Lambda(lambda t: ops.relu(t) * 2)(L.Conv2D(6, 3, name="conv")(i)), i)
    assert keras_pcp.build_graph(model)["conv"].num_channels == 6


def test_a_model_saved_by_its_constructor_becomes_a_plain_one():
    class Net(keras.Model):
        def __init__(self, width):
            i = keras.Input((8, 8, 3))
            super().__init__(i, L.Conv2D(2, 1)(L.Conv2D(width, 3, name="conv")(i)))
            self.width = width

        def get_config(self):
            return {"width": self.width}

    model = Net(6)
    graph = keras_pcp.build_graph(model)
    small = keras_pcp.prune_model(model, graph, keras_pcp.Selection({"conv": np.arange(6) < 2}))
    again = keras.Model.from_config(small.get_config())
    assert again.get_layer("conv").filters == 2
    with pytest.raises(UnsupportedModelError, match="inline_blocks"):
        keras_pcp.shrink(model, graph, keras_pcp.Selection({"conv": np.arange(6) < 2}))


def made(call, build=None):
    """A layer with this call, called on (None, 4, 4, 6), and what is found inside."""
    layer_class = type("Made", (L.Layer,), {"call": call} | ({"build": build} if build else {}))
    layer, x = layer_class(), keras.Input((4, 4, 6))
    layer(x)
    return look_inside(layer, (x,), {})


def drop_path(self, x, training=None):
    if not training:
        return x
    return x * ops.floor(0.5 + keras.random.uniform((ops.shape(x)[0], 1, 1, 1)))


def other_in_training(self, x, training=None):
    return ops.relu(x) if training else ops.silu(x)


def own_weight(self, x):
    return x * self.scale


def eager_constant(self, x):
    return x * ops.exp(ops.ones((6,)))


def tensorflow_function(self, x):
    return tf.nn.relu(x)


def add_scale(self, input_shape):
    self.scale = self.add_weight(shape=(6,))


def hidden_constant(self, x):
    return x * ops.reshape(self.scale, (1, 1, 1, 6))


@pytest.mark.parametrize(
    ("call", "build", "reason"),
    [
        (other_in_training, None, "something else in training"),
        (own_weight, add_scale, "owns weights"),
        (hidden_constant, add_scale, "owns weights"),
        (eager_constant, None, "tensor that is not among its inputs"),
        (tensorflow_function, None, "does not accept symbolic inputs"),
    ],
)
def test_these_stay_closed_with_a_reason(call, build, reason):
    assert reason in made(call, build)


def test_a_layer_that_does_something_in_training_only_passes_the_channels_on():
    assert made(drop_path) == INERT
    layer = type("DropPath", (L.Layer,), {"call": drop_path})()
    i = keras.Input((8, 8, 3))
    graph = keras_pcp.build_graph(classify(layer(L.Conv2D(6, 3, name="conv")(i)), i))
    assert (graph["conv"].num_channels, graph.blocks) == (6, ())


def test_a_block_may_hold_a_layer_without_a_config():
    class Nothing(L.Layer):
        def __init__(self, function, **kwargs):
            super().__init__(**kwargs)

        def call(self, x):
            return x

    def build(self, input_shape):
        self.nothing = Nothing(lambda x: x)

    assert not isinstance(made(lambda self, x, training=None: ops.relu(self.nothing(x)), build), str)


def test_a_block_that_freezes_a_layer_in_training_stays_closed():
    def build(self, input_shape):
        self.bn = L.BatchNormalization()
        self.bn.build(input_shape)

    assert "training=False" in made(lambda self, x, training=None: self.bn(x, training=False), build)


def test_an_activation_function_is_followed_by_the_operations_it_runs():
    i = keras.Input((8, 8, 3))
    fine = classify(L.Conv2D(6, 3, activation=lambda x: x * ops.sigmoid(1.7 * x), name="conv")(i), i)
    assert keras_pcp.build_graph(fine)["conv"].num_channels == 6
    mixing = classify(L.Conv2D(6, 3, activation=lambda x: x / ops.sum(x, -1, keepdims=True), name="conv")(i), i)
    with pytest.raises(UnsupportedModelError, match="uses the function"):
        keras_pcp.build_graph(mixing)


def test_the_report_tells_how_many_blocks_were_opened():
    found = keras_pcp.inspect_graph(keras_pcp.build_graph(block_model()))
    assert f"opened      {len(found.blocks)} blocks" in str(found)
    assert {"one", "two"} <= set(found.to_json()["blocks"])

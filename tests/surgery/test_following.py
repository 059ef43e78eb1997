"""Layers without weights stay where they are when a model is shrunk in place, if they follow the widths around them."""

import keras
import numpy as np
import pytest
from keras import ops
from runs import run_of
from zoo import assert_close, outputs_of, random_selection

import keras_pcp
from keras_pcp.errors import UnsupportedModelError

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class DepthToSpace(L.Layer):
    def call(self, x):
        _, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (-1, height, width, 2, 2, channels // 4))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 2 * height, 2 * width, channels // 4))


@keras.saving.register_keras_serializable("tests")
class ReflectionPadding(L.Layer):
    def __init__(self, width=1, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def call(self, x):
        return ops.pad(x, ((0, 0), (self.width, self.width), (self.width, self.width), (0, 0)), mode="reflect")

    def get_config(self):
        return super().get_config() | {"width": self.width}


@keras.saving.register_keras_serializable("tests")
class Tokens(L.Layer):
    def call(self, x):
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))


@keras.saving.register_keras_serializable("tests")
class Distance(L.Layer):
    def call(self, a, b):
        return ops.sqrt(ops.mean((a - b) ** 2, axis=-1, keepdims=True))


@keras.saving.register_keras_serializable("tests")
class SecondHalf(L.Layer):
    def call(self, x):
        return x[..., x.shape[-1] // 2 :] * 1.0


@keras.saving.register_keras_serializable("tests")
class Storing(L.Layer):
    """A reshape to a width that was noted when the layer was built."""

    def build(self, shape):
        self.channels = shape[-1]

    def call(self, x):
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], self.channels))


@keras.saving.register_keras_serializable("tests")
class Shortcut(L.Layer):
    """A shortcut with more channels, as in the first residual networks."""

    def call(self, x):
        return ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))


def rich_model():
    keras.utils.set_random_seed(0)
    i = keras.Input((4, 4, 3))
    x = L.Conv2D(12, 3, padding="same", name="first")(ReflectionPadding()(i))
    x = L.Conv2D(8, 1, name="second")(DepthToSpace()(x))
    x = L.Lambda(lambda t: ops.relu(t) * 2.0)(x)
    x = L.Conv2D(6, 1, name="third")(x[..., 2:7])
    a, b = L.Conv2D(5, 1, name="a")(Tokens()(x)[:, :, None]), L.Conv2D(5, 1, name="b")(x)
    head = L.Dense(2)(L.GlobalAveragePooling2D()(Distance()(a, ops.reshape(b, (-1, 144, 1, 5)))))
    return keras.Model(i, head)


def single(layer):
    keras.utils.set_random_seed(0)
    i = keras.Input((4, 4, 3))
    x = layer(L.Conv2D(8, 1, name="conv")(i))
    return keras.Model(i, L.Dense(2)(L.Flatten()(L.Dense(3, name="next")(x))))


X = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")


def test_a_model_with_such_layers_is_shrunk_in_place_again_and_again():
    model = rich_model()
    layers = [type(layer) for layer in model.layers]
    for seed in (0, 1):
        graph = keras_pcp.build_graph(model)
        assert {"first", "second", "third"} <= set(graph.groups)
        selection = random_selection(graph, seed)
        with keras_pcp.masked(model, graph, selection):
            expected = outputs_of(model, X)
        pruned = keras_pcp.prune_model(model, graph, selection)
        before = model.count_params()
        keras_pcp.shrink(model, graph, selection)
        assert model.count_params() == pruned.count_params() < before
        assert [type(layer) for layer in model.layers] == layers
        assert_close(outputs_of(model, X), expected)
        for layer in model.layers:  # the graph's own shapes are those of the arrays
            found = keras.Model(model.inputs, layer.output)(X)
            assert tuple(found.shape[1:]) == tuple(layer.output.shape[1:])


def test_a_fit_shrinks_such_a_model_and_its_file_is_loaded(tmp_path):
    model = single(lambda x: Tokens()(ReflectionPadding()(x)))
    model.compile("sgd", "mse")
    y = np.zeros((2, 2), "float32")
    pruning = keras_pcp.ProgressivePruning(max_params=0.4, validation_data=(X, y))  # not by 'next' alone
    model.fit(np.tile(X, (16, 1, 1, 1)), np.tile(y, (16, 1)), batch_size=2, epochs=1, verbose=0, callbacks=[pruning])
    assert pruning.report.reached
    assert model.get_layer("conv").filters < 8
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(outputs_of(loaded, X), outputs_of(model, X), 0)
    with pytest.raises(UnsupportedModelError, match="refit_data"):
        run_of(model, (X, y), refit_data=X, max_params=0.9)


def test_zeros_that_such_a_layer_adds_stay_until_it_is_opened():
    keras.utils.set_random_seed(0)
    i = keras.Input((4, 4, 3))
    x = L.Conv2D(4, 1, name="first")(i)
    y = L.Add()([Shortcut()(x), L.Conv2D(8, 3, strides=2, padding="same", name="wide")(x)])
    model = keras.Model(i, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(y)))
    graph = keras_pcp.build_graph(model)
    assert {group.name: group.num_channels for group in graph} == {"first": 4}
    assert [(f.layer, f.num_channels) for f in graph.frozen] == [("wide", 4), ("head", 2)]
    selection = keras_pcp.Selection({"first": np.arange(4) % 2 == 0})
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, X)
    keras_pcp.shrink(model, graph, selection)
    assert_close(outputs_of(model, X), expected)
    plain = keras_pcp.inline_blocks(model)
    assert {group.name: group.num_channels for group in keras_pcp.build_graph(plain)} == {"first": 2, "wide": 4}


def test_a_layer_that_stores_a_width_is_refused_with_the_reason_and_nothing_changes():
    model = single(Storing(name="storing"))
    graph = keras_pcp.build_graph(model)
    before = model.get_weights(), model.get_config()
    message = r"'storing' \(Storing\) does not follow the widths of its inputs: .*inline_blocks"
    with pytest.raises(UnsupportedModelError, match=message):
        keras_pcp.shrink(model, graph, keras_pcp.Selection({"conv": np.arange(8) < 4}))
    assert model.get_config() == before[1]
    assert all(map(np.array_equal, model.get_weights(), before[0]))
    model.compile("sgd", "mse")
    pruning = keras_pcp.ProgressivePruning(max_params=0.6, validation_data=(X, np.zeros((2, 2))))
    with pytest.raises(UnsupportedModelError, match=message):
        model.fit(X, np.zeros((2, 2)), verbose=0, callbacks=[pruning])
    plain = keras_pcp.inline_blocks(model)
    graph, selection = keras_pcp.build_graph(plain), keras_pcp.Selection({"conv": np.arange(8) < 4})
    with keras_pcp.masked(plain, graph, selection):
        expected = outputs_of(plain, X)
    keras_pcp.shrink(plain, graph, selection)
    assert_close(outputs_of(plain, X), expected)


def test_channels_that_are_taken_by_place_must_be_those_that_the_graph_says():
    """Channel 4, the first one taken, is frozen. Without channel 5, the half of seven would begin at channel 3."""
    model = single(lambda x: SecondHalf(name="half")(x))
    graph = keras_pcp.build_graph(model)
    channels = np.delete(np.arange(8), 4)
    with pytest.raises(UnsupportedModelError, match=r"'half' .*does not follow"):
        keras_pcp.shrink(model, graph, keras_pcp.Selection({"conv": channels != 5}))
    selection = keras_pcp.Selection({"conv": ~np.isin(channels, [1, 5])})
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, X)
    keras_pcp.shrink(model, graph, selection)
    assert model.get_layer("conv").filters == 6
    assert_close(outputs_of(model, X), expected)

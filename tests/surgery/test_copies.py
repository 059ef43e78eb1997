"""Copies: what a pruned copy has beside the sliced weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from zoo import build, inputs_for, outputs_of, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError

L = keras.layers


def adapted_model():
    rng = np.random.default_rng(0)
    normalization = L.Normalization()
    normalization.adapt(rng.normal(3, 2, (50, 6, 6, 3)))
    i = keras.Input((6, 6, 3))
    x = L.Conv2D(8, 3, activation="relu")(normalization(i))
    return keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


def test_a_copy_of_an_adapted_normalization_normalizes_alike():
    model, x = adapted_model(), np.random.default_rng(1).normal(3, 2, (2, 6, 6, 3))
    graph = keras_pcp.build_graph(model)
    same = keras_pcp.prune_model(model, graph, keras_pcp.Selection())
    assert np.array_equal(outputs_of(same, x)[0], outputs_of(model, x)[0])
    selection = random_selection(graph, 0)
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, x)[0]
    found = outputs_of(keras_pcp.prune_model(model, graph, selection), x)[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_no_initializer_runs_for_a_pruned_copy(monkeypatch):
    model = adapted_model()
    graph = keras_pcp.build_graph(model)

    def never(*args, **kwargs):
        raise AssertionError("initialized in vain")

    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", never)
    with pytest.raises(AssertionError, match="in vain"):
        keras.models.clone_model(model)
    small = keras_pcp.prune_model(model, graph, random_selection(graph, 0))
    assert small.count_params() < model.count_params()


def test_a_graph_of_another_model_is_refused_before_anything_is_built():
    graph = keras_pcp.build_graph(adapted_model())
    i = keras.Input((6, 6, 3))
    other = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(9, 3)(i))))
    with pytest.raises(InvalidArgumentError, match="call build_graph"):
        keras_pcp.prune_model(other, graph, keras_pcp.Selection())


def between_convolutions(layer):
    """A model that passes a convolution's channels through a layer into a consumer."""
    i = keras.Input((4, 4, 3))
    return keras.Model(i, L.Dense(2)(L.Flatten()(layer(L.Conv2D(6, 1, name="conv")(i)))))


def freezing_graph(model):
    return keras_pcp.build_graph(model, on_unknown="freeze")


def test_a_copy_that_would_compute_something_else_is_refused_and_a_shrink_is_not():
    """Keras saves `ops.gelu` as "gelu", which it loads as another function."""
    model = between_convolutions(L.Conv2D(5, 1, activation=ops.gelu, name="act"))
    graph, selection = keras_pcp.build_graph(model), keras_pcp.Selection({"conv": np.arange(6) < 2})
    with keras_pcp.masked(model, graph, selection):
        expected = outputs_of(model, np.ones((1, 4, 4, 3)))[0]
    message = r"'act' \(Conv2D\) computes something else.*shrink needs no copy and works on this model in place$"
    with pytest.raises(UnsupportedModelError, match=message):
        keras_pcp.prune_model(model, graph, selection)
    keras_pcp.shrink(model, graph, selection)
    np.testing.assert_allclose(outputs_of(model, np.ones((1, 4, 4, 3)))[0], expected, rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
def exact_gelu(x):
    return ops.gelu(x, approximate=False)


class Scaled(L.Layer):
    """A layer that forgets, in its config, a setting that its output depends on."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.weight = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * self.weight * self.factor

    def get_config(self):
        return super().get_config()


class Sampling(L.Layer):
    """A layer that draws at every call; its generator is not in its config."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator()

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.generator)


class Unseeded(L.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


class OnlyThree(L.Layer):
    """A layer that runs on batches of three only."""

    def build(self, shape):
        self.weight = self.add_weight(shape=())

    def call(self, x):
        return ops.reshape(x, (3, 4, 4, 6)) * self.weight

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv2D(5, 1, activation=ops.relu),
        L.Conv2D(5, 1, activation=exact_gelu),
        Sampling(),
        Unseeded(),
        OnlyThree(),
        Scaled(),
        L.TimeDistributed(L.Dense(4, activation="gelu")),
    ],
)
def test_copies_that_compute_the_same_or_cannot_be_compared_are_made(layer):
    model = between_convolutions(layer)
    copy = keras_pcp.prune_model(model, freezing_graph(model), keras_pcp.Selection())
    for a, b in zip(copy.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_a_setting_that_a_custom_layer_does_not_save_is_noticed():
    model = between_convolutions(Scaled(3.0, name="scaled"))
    with pytest.raises(UnsupportedModelError, match=r"'scaled' \(Scaled\) computes something else"):
        keras_pcp.prune_model(model, freezing_graph(model), keras_pcp.Selection())


def test_layers_on_integers_and_in_nested_models_are_compared_too():
    i = keras.Input((7,), dtype="int32")
    inner = keras.Sequential([keras.Input((7, 5)), L.Conv1D(4, 3, activation=ops.gelu, name="deep")])
    model = keras.Model(i, L.Dense(2)(L.Flatten()(inner(L.Embedding(3, 5)(i)))))
    with pytest.raises(UnsupportedModelError, match="'deep'"):
        keras_pcp.prune_model(model, keras_pcp.build_graph(model), keras_pcp.Selection())


class Nameless(L.Layer):
    """A layer that Keras cannot rebuild."""

    def __init__(self, width):
        super().__init__()
        self.weight = self.add_weight(shape=(width,), name="weight")

    def call(self, x):
        return x * self.weight


class Hiding(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Conv2D(6, 1, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


def test_a_layer_that_cannot_be_rebuilt_is_named_and_a_shrink_is_offered_and_works():
    model = between_convolutions(lambda x: Nameless(5)(L.Conv2D(5, 1)(L.ReLU()(x))))
    selection = keras_pcp.Selection({"conv": np.arange(6) < 2})
    message = (
        r"layer 'nameless[_0-9]*' \(Nameless\) cannot be rebuilt from its config.*unexpected keyword argument "
        "'trainable'. keras_pcp.shrink needs no copy and works on this model in place$"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        keras_pcp.prune_model(model, freezing_graph(model), selection)
    keras_pcp.shrink(model, freezing_graph(model), selection)
    assert model.get_layer("conv").filters == 2


def test_a_shrink_is_offered_only_where_it_works():
    model = between_convolutions(lambda x: Nameless(6)(Hiding()(x)))
    with pytest.raises(UnsupportedModelError, match=r"in place after model = keras_pcp.inline_blocks\(model\)$"):
        keras_pcp.prune_model(model, freezing_graph(model), keras_pcp.Selection())
    plain = keras_pcp.inline_blocks(model)
    keras_pcp.shrink(plain, freezing_graph(plain), keras_pcp.Selection({"conv": np.arange(6) < 2}))
    assert plain.get_layer("conv").filters == 2

    class Odd(keras.optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.extra = self.add_variable((5,), name="extra")

    model = between_convolutions(lambda x: Nameless(6)(x))
    model.compile(Odd(), "mse")
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(UnsupportedModelError) as error:
        keras_pcp.prune_model(model, freezing_graph(model), keras_pcp.Selection())
    assert "shrink" not in str(error.value)


def test_widening_refuses_a_model_that_does_not_fit():
    model = build("residual")
    graph = keras_pcp.build_graph(model)
    pruned = keras_pcp.prune_model(model, graph, random_selection(graph, 0))
    with pytest.raises(InvalidArgumentError, match="has shape"):
        keras_pcp.widen_model(pruned, model, graph, random_selection(graph, 1))


def test_pruning_leaves_the_original_untouched():
    for name in ("nested", "channel_shuffle", "slicing"):
        model = build(name)
        graph = keras_pcp.build_graph(model)
        before, config, x = model.get_weights(), model.to_json(), inputs_for(model)
        expected = outputs_of(model, x)
        keras_pcp.prune_model(model, graph, random_selection(graph, 0))
        assert model.to_json() == config
        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(expected, outputs_of(model, x), strict=True))

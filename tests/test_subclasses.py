"""Models of a class of their own keep it in copies, or are refused: their training must not be lost without a word."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_pcp
from keras_pcp.errors import UnsupportedModelError

L = keras.layers


class Doubled(L.Layer):
    """A block, so that a plain model has to be built."""

    def __init__(self, filters=6, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(filters, 1, name="inner")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return 2.0 * self.conv(x)


class Counting(keras.Model):
    """A functional model with its own steps and loss, and no constructor."""

    def train_step(self, data):
        return super().train_step(data) | {"own_train": ops.ones(())}

    def test_step(self, data):
        return super().test_step(data) | {"own_test": ops.ones(())}

    def predict_step(self, data):
        return super().predict_step(data) + 100.0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 7.0 + super().compute_loss(x, y, y_pred, sample_weight, training)


class PassingOn(Counting):
    """Hands its arguments on to Keras, and makes what its steps need."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.offset = 7.0


def parts(block=True):
    keras.utils.set_random_seed(0)
    i = keras.Input((4, 4, 3))
    x = L.Conv2D(6, 1, name="conv")(i)
    x = Doubled()(x) if block else x
    return i, L.Dense(2)(L.GlobalAveragePooling2D()(x))


DATA = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype("float32"), np.zeros((4, 2), "float32")


def assert_own_methods_work(model):
    x, y = DATA
    model.compile("sgd", "mse")
    plain = keras.Model(model.inputs, model.outputs)
    plain.compile("sgd", "mse")
    tested = model.test_on_batch(x, y, return_dict=True)
    assert tested["own_test"] == 1
    assert tested["loss"] == pytest.approx(7 + plain.test_on_batch(x, y), rel=1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0), 100 + plain.predict(x, verbose=0), rtol=1e-5)
    assert model.train_on_batch(x, y, return_dict=True)["own_train"] == 1


@pytest.mark.parametrize("cls", [Counting, PassingOn])
def test_a_model_keeps_its_class_where_it_can_be_made_from_its_graph(cls):
    model = cls(*parts(), name="own")
    plain = keras_pcp.inline_blocks(model)
    assert (type(plain), plain.name) == (cls, "own")
    assert_own_methods_work(plain)
    graph = keras_pcp.build_graph(model)
    selection = keras_pcp.Selection({"conv": np.arange(6) < 2})
    small = keras_pcp.prune_model(model, graph, selection)
    assert type(small) is cls
    assert small.get_layer("conv").filters == 2
    assert_own_methods_work(small)
    assert type(keras_pcp.widen_model(small, model, graph, selection)) is cls
    assert getattr(small, "offset", 7.0) == 7.0


class OwnConstructor(Counting):
    def __init__(self, width):
        i = keras.Input((4, 4, 3))
        super().__init__(i, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(width, 1, name="conv")(i))))
        self.width = width

    def get_config(self):
        return {"width": self.width}


class WithOption(Counting):
    def __init__(self, *args, offset=3.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.offset = offset


class Chain(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


@pytest.mark.parametrize(
    ("make", "lost"),
    [
        (lambda: OwnConstructor(6), "compute_loss, predict_step, test_step, train_step"),
        (lambda: WithOption(*parts(), offset=5.0), "compute_loss, predict_step, test_step, train_step"),
        (
            lambda: Chain([keras.Input((4, 4, 3)), L.Conv2D(6, 1, name="conv"), Doubled(), L.Flatten(), L.Dense(2)]),
            "train_step",
        ),
    ],
)
def test_a_model_whose_own_training_would_be_lost_is_refused(make, lost):
    model = make()
    graph = keras_pcp.build_graph(model)
    message = rf"class {type(model).__name__}.*{lost}.*keras\.Model\(model\.inputs, model\.outputs\)"
    with pytest.raises(UnsupportedModelError, match=message):
        keras_pcp.inline_blocks(model)
    with pytest.raises(UnsupportedModelError, match=message):
        keras_pcp.prune_model(model, graph, keras_pcp.Selection({"conv": np.arange(6) < 2}))
    with pytest.raises(UnsupportedModelError, match=message):
        keras_pcp.shrink(model, graph, keras_pcp.Selection({"conv": np.arange(6) < 2}))


def test_what_the_message_says_works():
    model = OwnConstructor(6)
    plain = keras.Model(model.inputs, model.outputs)
    keras_pcp.shrink(plain, keras_pcp.build_graph(plain), keras_pcp.Selection({"conv": np.arange(6) < 2}))
    assert plain.get_layer("conv").filters == 2
    same = Counting(model.inputs, model.outputs)
    keras_pcp.shrink(same, keras_pcp.build_graph(same), keras_pcp.Selection({"conv": np.arange(2) < 1}))
    assert_own_methods_work(same)


def test_a_nested_model_s_own_training_is_not_that_of_the_model():
    inner = OwnConstructor(6)
    i = keras.Input((4, 4, 3))
    model = keras.Model(i, L.Dense(3)(inner(i)))
    assert type(keras_pcp.inline_blocks(model)) is type(keras.Model(i, i[..., 0]))

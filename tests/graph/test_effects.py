"""A block is opened only if it has no effect but its outputs: each kind of effect is kept, or refused with its reason."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from zoo import classify

import keras_pcp
from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.trace import trace

L = keras.layers


class MaskedConv(L.Layer):
    """A convolution that sees nothing to the right: it writes zeros to its kernel before it convolves."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(filters, 3, padding="same", name="inner")

    def build(self, shape):
        self.conv.build(shape)
        self.mask = np.ones(self.conv.kernel.shape, "float32")
        self.mask[:, 2] = 0

    def call(self, x):
        self.conv.kernel.assign(self.conv.kernel * self.mask)
        return self.conv(x)


def with_block(block):
    """A model with a block between two convolutions."""
    i = keras.Input((5, 5, 2))
    return classify(L.Conv2D(3, 1, name="last")(block(L.Conv2D(6, 1, name="conv")(i))), i)


def block(call, **made):
    """A layer with this call; `made` are attributes, made when it is."""
    layer = type("Block", (L.Layer,), {"call": call})()
    for name, make in made.items():
        setattr(layer, name, make())
    return layer


def test_a_masked_convolution_stays_causal():
    model = with_block(MaskedConv(6, name="causal"))
    with pytest.raises(UnsupportedModelError, match=r"'causal'.*it assigns to a variable in its call"):
        keras_pcp.build_graph(model)
    model.get_layer("causal").conv.kernel.assign(np.ones((3, 3, 6, 6)))
    plain = keras_pcp.inline_blocks(model)
    assert isinstance(plain.get_layer("causal"), MaskedConv)
    assert model.get_layer("causal").conv.kernel.numpy().all()  # looking for effects has none
    plain.compile("sgd", "mse")
    plain.train_on_batch(np.ones((2, 5, 5, 2)), np.ones((2, 4)))
    left = np.ones((1, 1, 2, 6), "float32")
    right = left * [[[[1.0], [9.0]]]]
    seen = [plain.get_layer("causal")(x).numpy()[0, 0, 0] for x in (left, right)]
    assert np.array_equal(*seen)
    graph = keras_pcp.build_graph(model, on_unknown="freeze")
    assert graph.blocks == ()
    assert any(f.layer == "conv" and "assigns to a variable" in f.reason for f in graph.frozen)


def tensorflow_variable(self, x):
    self.count.assign_add(1.0)
    return ops.relu(x)


def reads_a_tensorflow_variable(self, x):
    return x * self.count


def loss_of_the_input(self, x):
    self.add_loss(ops.mean(x))
    return ops.relu(x)


def loss_of_a_weight(self, x):
    self.add_loss(ops.sum(self.conv.kernel**2))
    return self.conv(x)


def metric_of_the_input(self, x):
    self.metric.update_state(ops.mean(x))
    return ops.relu(x)


def metric_of_nothing(self, x):
    self.metric.update_state(1.0)
    return ops.relu(x)


def own_noise(self, x):
    return ops.relu(x) + keras.random.normal((6,), seed=self.seed)


def unused_noise(self, x):
    keras.random.normal((6,), seed=self.seed)
    return ops.relu(x)


def stops_gradients_by_tensorflow(self, x):
    return tf.stop_gradient(x)


def condition(self, x):
    return ops.cond(ops.mean(x) > 0, lambda: ops.relu(x), lambda: ops.silu(x))


def loop(self, x):
    return ops.fori_loop(0, 3, lambda i, v: v + 1, x)


def counter(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return ops.relu(x)


def memory(self, x):
    self.notes.append(x)
    return ops.relu(x)


def last_value(self, x):
    self.last = ops.relu(x)
    return self.last


def draws_in_python(self, x):
    return x * float(np.random.default_rng().normal())


def prints(self, x):
    tf.print("called")
    return ops.relu(x)


def frozen_statistics(self, x):
    return self.norm(x, training=False)


def permanent_dropout(self, x):
    return self.drop(x, training=True)


def drops_a_result(self, x):
    self.loud(x)
    return ops.relu(x)


def not_trained():
    layer = L.Conv2D(6, 1)
    layer.trainable = False
    return layer


class Loud(L.Layer):
    """A layer without weights that adds a loss."""

    def call(self, x):
        self.add_loss(ops.mean(x))
        return x


def built_conv():
    layer = L.Conv2D(6, 1)
    layer.build((None, 5, 5, 6))
    return layer


SEED = {"seed": lambda: keras.random.SeedGenerator(1)}


@pytest.mark.parametrize(
    ("call", "made", "reason"),
    [
        (tensorflow_variable, {"count": lambda: tf.Variable(1.0)}, "assigns to a variable"),
        (reads_a_tensorflow_variable, {"count": lambda: tf.Variable(1.0)}, "tensor that is not among its inputs"),
        (loss_of_the_input, {}, "adds a loss"),
        (loss_of_a_weight, {"conv": built_conv}, "adds a loss"),
        (metric_of_the_input, {"metric": keras.metrics.Mean}, "updates a metric"),
        (metric_of_nothing, {"metric": keras.metrics.Mean}, "assigns to a variable"),
        (own_noise, SEED, "assigns to a variable"),
        (unused_noise, SEED, "assigns to a variable"),
        (stops_gradients_by_tensorflow, {}, "cannot be listed"),
        (condition, {}, "Cond in it runs a Python function"),
        (loop, {}, "ForiLoop in it runs a Python function"),
        (counter, {}, "changes its attribute 'calls'"),
        (memory, {"notes": list}, "changes its attribute 'notes'"),
        (last_value, {}, "changes its attribute 'last'"),
        (draws_in_python, {}, "does not run the same each time"),
        (prints, {}, "it prints"),
        (frozen_statistics, {"norm": L.BatchNormalization}, "training=False at all times"),
        (permanent_dropout, {"drop": lambda: L.Dropout(0.5)}, "training=True at all times"),
        (drops_a_result, {"loud": Loud}, "gives other losses without it"),
    ],
)
def test_a_block_with_an_effect_stays_closed_and_says_which(call, made, reason):
    with pytest.raises(UnsupportedModelError, match=rf"'block[_0-9]*' \(Block\).*{reason}"):
        keras_pcp.build_graph(with_block(block(call, **made)))


def test_a_layer_of_somebody_else_is_not_taken_over():
    other = L.Conv2D(6, 1)
    with pytest.raises(UnsupportedModelError, match="calls a layer that is not its own"):
        keras_pcp.build_graph(with_block(L.Lambda(lambda x: other(x))))


def test_a_block_that_was_frozen_before_it_got_its_layers_stays_frozen():
    layer = block(lambda self, x: self.conv(x))
    layer.trainable = False
    layer.conv = L.Conv2D(6, 1)
    assert layer.conv.trainable
    with pytest.raises(UnsupportedModelError, match="does not train the same weights"):
        keras_pcp.build_graph(with_block(layer))


def test_a_mask_that_a_block_passes_on_is_not_lost():
    passes_on = block(lambda self, x: ops.relu(x))
    passes_on.supports_masking = True
    i = keras.Input((4,), dtype="int32")
    embedded = L.Embedding(5, 6, mask_zero=True)(i)
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(passes_on(embedded))))
    with pytest.raises(UnsupportedModelError, match="other outputs without it"):
        keras_pcp.build_graph(model)


def rich(self, x, training=None):
    y = self.drop(self.norm(self.conv(x), training=training), training=training)
    return y + ops.stop_gradient(ops.relu(x))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_what_layers_do_in_training_is_kept_and_gradients_are_stopped_alike(policy):
    """Dropout, statistics, regularization and stopped gradients: a step of both models moves all weights alike."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        made = {
            "norm": L.BatchNormalization,
            "drop": lambda: L.Dropout(0.5, seed=3),
            "conv": lambda: L.Conv2D(6, 1, activity_regularizer="l2" if policy == "float32" else None),
        }
        model = with_block(block(rich, **made))
    finally:
        keras.config.set_dtype_policy("float32")
    plain, before = keras_pcp.inline_blocks(model), model.get_weights()
    assert {"StopGradient", "Dropout"} <= {type(op).__name__ for op in trace(plain).operations}
    x, y = np.random.default_rng(0).normal(size=(8, 5, 5, 2)), np.ones((8, 4))
    seed = next(op for op in trace(plain).operations if type(op).__name__ == "Dropout").seed_generator.state
    start, found = seed.numpy(), []
    for network in (model, plain):
        model.set_weights(before)
        seed.assign(start)
        network.compile(keras.optimizers.SGD(0.1), "mse")
        found.append((network.train_on_batch(x, y), [w.numpy() for w in model.weights]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)

"""Gradient reversal, and its schedules."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from domains import dann, domains, operations

import keras_pcp
from keras_pcp.errors import InvalidArgumentError

L = keras.layers


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_the_gradient_is_minus_the_weight_times_that_of_finite_differences(how):
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    reverse = keras_pcp.GradientReversal(0.7, dtype="float64")

    def loss(v, layer):
        return tf.reduce_sum(tf.sin(layer(v) @ matrix) ** 2)

    def gradient(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            found = loss(v, reverse)
        return found, tape.gradient(found, v)

    run = {"eager": gradient, "graph": tf.function(gradient), "xla": tf.function(gradient, jit_compile=True)}[how]
    value, found = run(tf.constant(x))
    assert float(value) == pytest.approx(float(loss(tf.constant(x), lambda v: v)), rel=1e-12)
    numeric = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        up, down = (float(loss(tf.constant(x + sign * step), lambda v: v)) for sign in (1, -1))
        numeric[place] = (up - down) / 2e-6
    assert found.numpy() == pytest.approx(-0.7 * numeric, rel=1e-6, abs=1e-8)


def test_reversal_in_mixed_precision_and_after_saving(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(keras_pcp.GradientReversal(0.5, dtype="mixed_float16", name="reverse")(x)))
    layer = model.get_layer("reverse")
    assert layer(np.ones((1, 4), "float32")).dtype == "float16"
    layer.weight.assign(0.25)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.get_layer("reverse").weight) == 0.25
    with tf.GradientTape() as tape:
        v = tf.Variable(np.ones((1, 4), "float32"))
        y = tf.reduce_sum(tf.cast(loaded.get_layer("reverse")(v), "float32"))
    assert tape.gradient(y, v).numpy().tolist() == [[-0.25] * 4]


def test_a_functional_model_with_reversal_is_pruned_and_exported_without_it(tmp_path):
    x = keras.Input((8, 8, 1))
    y = keras_pcp.GradientReversal(0.5)(L.Conv2D(6, 3, name="conv")(x))
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(y)))
    graph = keras_pcp.build_graph(model)
    assert [g.name for g in graph] == ["conv"]
    small = keras_pcp.prune_model(model, graph, keras_pcp.Selection({"conv": np.arange(6) < 4}))
    assert keras_pcp.export_litert(small, tmp_path / "small.tflite").max_error < 1e-5
    assert operations(tmp_path / "small.tflite") == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_bad_reversal_weights_are_refused(weight):
    with pytest.raises(InvalidArgumentError, match="weight"):
        keras_pcp.GradientReversal(weight)


def test_the_schedules_follow_the_paper():
    network = dann()
    seen = []
    (x, y), target = domains()
    schedule = keras_pcp.adaptation.ReversalSchedule()
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda b, logs: seen.append(float(network.model.get_layer("reversal").weight))
    )
    network.fit((x, y), target, batch_size=32, epochs=2, verbose=0, callbacks=[schedule, note])
    p = np.arange(12) / 12
    assert seen == pytest.approx(2 / (1 + np.exp(-10 * p)) - 1, abs=1e-6)
    rate = keras_pcp.adaptation.AnnealedLearningRate(0.01, 100)
    assert [float(rate(s)) for s in (0, 50, 100, 200)] == pytest.approx([0.01, 0.01 / 6**0.75, *[0.01 / 11**0.75] * 2])
    assert keras_pcp.adaptation.AnnealedLearningRate.from_config(rate.get_config()).get_config() == rate.get_config()
    network.classifier.compile("sgd", "mse")
    with pytest.raises(InvalidArgumentError, match="no GradientReversal"):
        network.classifier.fit(x, np.zeros((len(x), 3)), verbose=0, callbacks=[keras_pcp.adaptation.ReversalSchedule()])

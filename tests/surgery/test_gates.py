"""Channels that are held at zero over training steps, and come back."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_pcp
from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.selection import Selection
from keras_pcp.support.changes import all_or_nothing
from keras_pcp.surgery.gates import Gates, check_gates

L = keras.layers


def network(**options):
    keras.utils.set_random_seed(0)
    i = keras.Input((6, 6, 1))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, name="first")(i)))
    limit = keras.constraints.MaxNorm(0.4)
    x = L.Conv2D(6, 3, name="second", kernel_constraint=limit)(x)
    model = keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(options.pop("optimizer", "adam"), loss, **options)
    return model


def samples(count=64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 6, 6, 1)).astype("float32"), rng.integers(0, 3, count)


ODD = Selection({"first": np.arange(8) % 2 == 1})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run_eagerly": True},
        {"steps_per_execution": 4},
        {"jit_compile": True},
        {"optimizer": keras.optimizers.SGD(0.1, 0.9)},
    ],
    ids=["graph", "eager", "several_steps", "jit", "momentum"],
)
def test_what_is_held_stays_at_zero_through_training_and_the_rest_trains(options):
    model = network(**options)
    model.fit(*samples(), verbose=0)
    gates = Gates(model, keras_pcp.build_graph(model))
    all_or_nothing(lambda journal: gates.hold(ODD, journal))
    kernel = model.get_layer("second").kernel
    before = kernel.numpy()
    model.fit(*samples(), epochs=2, verbose=0)
    assert not kernel.numpy()[:, :, ::2].any()
    assert (kernel.numpy()[:, :, 1::2] != before[:, :, 1::2]).any()
    norms = np.sqrt(np.square(kernel.numpy()).sum(axis=(0)))
    assert norms.max() <= 0.4 + 1e-5  # the layer's own constraint goes on
    with keras_pcp.masked(model, keras_pcp.build_graph(model), ODD):
        expected = model.predict(samples()[0], verbose=0)
    assert np.array_equal(model.predict(samples()[0], verbose=0), expected)


def test_channels_come_back_with_the_weights_that_they_had_and_other_ones_go_without_a_retrace():
    model = network()
    model.fit(*samples(), verbose=0)
    gates = Gates(model, keras_pcp.build_graph(model))
    kernel, whole = model.get_layer("second").kernel, model.get_layer("second").kernel.numpy()
    constraint = kernel.constraint
    all_or_nothing(lambda journal: gates.hold(ODD, journal))
    model.fit(*samples(), verbose=0)
    function = model.train_function
    all_or_nothing(lambda journal: gates.hold(Selection({"first": np.arange(8) % 2 == 0}), journal))
    assert np.array_equal(kernel.numpy()[:, :, ::2], whole[:, :, ::2])
    trained = kernel.numpy().copy()
    assert not trained[:, :, 1::2].any()
    model.fit(*samples(), verbose=0)
    assert model.train_function is function
    assert not kernel.numpy()[:, :, 1::2].any()
    all_or_nothing(gates.open)
    assert kernel.numpy()[:, :, 1::2].all()
    assert kernel.constraint is constraint
    model.fit(*samples(), verbose=0)
    assert kernel.numpy()[:, :, 1::2].all()


def test_a_change_that_fails_leaves_gates_and_weights_as_they_were():
    model = network()
    model.fit(*samples(), verbose=0)
    gates = Gates(model, keras_pcp.build_graph(model))
    all_or_nothing(lambda journal: gates.hold(ODD, journal))
    before, held = model.get_weights(), {i: v.copy() for i, v in gates.held_back.items()}

    def failing(journal):
        gates.hold(Selection({"first": np.arange(8) < 3}), journal)
        raise MemoryError

    with pytest.raises(MemoryError):
        all_or_nothing(failing)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert all(np.array_equal(gates.held_back[i], v) for i, v in held.items())
    all_or_nothing(gates.open)
    assert model.get_layer("second").kernel.numpy().all()


def test_an_optimizer_that_writes_averages_into_the_weights_is_refused():
    check_gates(network())
    with pytest.raises(UnsupportedModelError, match="use_ema"):
        check_gates(network(optimizer=keras.optimizers.SGD(0.1, use_ema=True)))


@pytest.mark.slow
def test_gates_hold_on_every_replica():
    code = """
import numpy as np, tensorflow as tf, keras, keras_pcp
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
keras.utils.set_random_seed(0)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    i = keras.Input((8, 8, 1))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3)(i)))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, name="second")(x)))
    model = keras.Model(i, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 8, 8, 1)).astype("float32"), rng.integers(0, 2, 64)
zeros = []

class Look(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        kernel = self.model.get_layer("second").kernel
        zeros.append([int((v.numpy() == 0).sum()) for v in kernel.value.values])

pruning = keras_pcp.Pruning(keras_pcp.strategies.Chex(every=1), max_macs=0.6, begin=0.0, end=0.8)
model.fit(x, y, batch_size=8, epochs=5, verbose=0, callbacks=[pruning, Look()])
assert pruning.report.reached
assert max(pair[0] for pair in zeros) > 0
assert all(pair[0] == pair[1] for pair in zeros)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "done"

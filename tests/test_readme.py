"""The README does what it says: the code of some sections is run as it stands there, section by section."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pcp

L = keras.layers
README = Path(__file__).parents[1] / "README.md"


def code_of(heading: str) -> str:
    """Returns the Python code of a section, and of nothing else."""
    text = README.read_text()
    section = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,3}} |\Z)", text, re.M | re.S).group(2)
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    assert blocks, f"no code under {heading!r}"
    return "\n".join(blocks)


def layers_of_a_small_network() -> tuple:
    inputs = keras.Input((8, 8, 1))
    h = L.Conv2D(12, 3, activation="relu", name="first")(inputs)
    h = L.Conv2D(12, 3, activation="relu", name="second")(h)
    return inputs, L.Dense(2, name="logits")(L.GlobalAveragePooling2D()(h))


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The names that the sections take for granted, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    y = np.arange(64) % 2
    inputs, outputs = layers_of_a_small_network()
    return {
        "keras": keras,
        "keras_pcp": keras_pcp,
        "np": np,
        "inputs": inputs,
        "outputs": outputs,
        "x": x,
        "y": y,
        "xv": x,
        "yv": y,
    }


class Gan(keras.Model):
    """A wrapper as in the Keras examples: two networks, and an optimizer for each."""

    def __init__(self):
        super().__init__()
        noise = keras.Input((4,))
        h = L.Reshape((6, 6, 4))(L.Dense(144, activation="relu")(noise))
        h = L.Conv2DTranspose(8, 3, activation="relu")(h)
        self.generator = keras.Model(noise, L.Conv2D(1, 1)(h))
        inputs, outputs = layers_of_a_small_network()
        self.discriminator = keras.Model(inputs, L.Dense(1)(outputs))

    def compile(self):
        super().compile()
        self.generator_optimizer = keras.optimizers.Adam(0.01)
        self.discriminator_optimizer = keras.optimizers.Adam(0.01)

    def train_step(self, images):
        noise = tf.random.normal((tf.shape(images)[0], 4))
        with tf.GradientTape() as tape:
            made = self.discriminator(self.generator(noise))
            loss = tf.reduce_mean(tf.nn.softplus(made)) + tf.reduce_mean(tf.nn.softplus(-self.discriminator(images)))
        variables = self.discriminator.trainable_variables
        self.discriminator_optimizer.apply(tape.gradient(loss, variables), variables)
        with tf.GradientTape() as tape:
            fooled = tf.reduce_mean(tf.nn.softplus(-self.discriminator(self.generator(noise))))
        variables = self.generator.trainable_variables
        self.generator_optimizer.apply(tape.gradient(fooled, variables), variables)
        return {"discriminator": loss, "generator": fooled}


def test_a_training_goes_on_from_the_file_that_it_left(names):
    model = keras.Model(names["inputs"], names["outputs"])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    names["model"], full = model, keras_pcp.count_cost(model).macs

    exec(code_of("After a crash"), names)

    again = names["model"]
    assert again is not model
    assert (
        int(again.optimizer.iterations) == 16
    )  # 8 epochs of 2 batches: the second fit went on with the first's optimizer
    assert 0.4 * full < keras_pcp.count_cost(again).macs <= 0.5 * full


def test_a_super_net_is_searched_as_the_readme_says(names, tmp_path):
    inputs = x = keras.Input((8, 8, 1))
    for strides in (1, 2, 2):
        x = L.Conv2D(6, 3, strides, padding="same", activation="relu")(x)
    names["model"] = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))

    exec(code_of("Search all widths with a super-net"), names)

    full = keras_pcp.count_cost(names["model"]).macs
    assert keras_pcp.count_cost(names["small"]).macs <= 0.5 * full
    assert (tmp_path / "front.png").exists()


def test_subclasses_are_pruned_as_the_readme_says(names):
    gan = names["gan"] = Gan()
    gan.compile()
    gan.fit(names["x"], verbose=0)
    before = keras_pcp.count_cost(gan.generator).macs

    exec(code_of("Your model is a subclass"), names)

    assert names["pruning"].report.reached
    assert isinstance(names["pruning"].model, names["Doubled"])
    assert [group.num_channels for group in keras_pcp.build_graph(names["model"])] == [16]
    np.testing.assert_allclose(names["network"](names["x"]), names["model"](names["x"]), rtol=1e-5, atol=1e-6)
    assert keras_pcp.count_cost(gan.generator).macs <= 0.5 * before

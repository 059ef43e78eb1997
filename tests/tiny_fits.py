"""A tiny network and data for strategies at work in `fit`."""

import keras
import numpy as np

L = keras.layers


def network(seed=0, optimizer="adam"):
    keras.utils.set_random_seed(seed)
    i = keras.Input((6, 6, 1))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, name="first")(i)))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, name="second")(x)))
    model = keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def samples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 6, 6, 1)).astype("float32"), rng.integers(0, 3, 64)

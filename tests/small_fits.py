"""A small network, data that it learns quickly, and what tells whether a model has changed."""

import json

import keras
import numpy as np
from zoo import conv_bn

L = keras.layers


def network(filters=12, classes=4):
    i = keras.Input((8, 8, 1))
    x = conv_bn(i, filters)
    x = L.Add()([x, conv_bn(conv_bn(x, filters), filters, activation=None)])
    x = conv_bn(L.ReLU()(x), 2 * filters, strides=2)
    return keras.Model(i, L.Dense(classes, name="logits")(L.GlobalAveragePooling2D()(x)))


def data(count=256, seed=0):
    """Images with one bright quadrant; the label says which."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = rng.normal(0, 0.3, (count, 8, 8, 1)).astype("float32")
    for k in range(count):
        x[k, 4 * (y[k] // 2) : 4 * (y[k] // 2) + 4, 4 * (y[k] % 2) : 4 * (y[k] % 2) + 4] += 1
        x[k, :, :, 0] += np.linspace(0, y[k], 8)  # quadrants vanish in a global average; slopes do not
    return x, y


def compiled(model=None, **kwargs):
    keras.utils.set_random_seed(0)
    model = model or network()
    model.compile(
        kwargs.pop("optimizer", "adam"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=kwargs.pop("metrics", ["accuracy"]),
        **kwargs,
    )
    return model


def state_of(model):
    return model.get_weights(), json.dumps(model.get_config(), default=str)


def same_state(a, b):
    return a[1] == b[1] and all(np.array_equal(x, y) for x, y in zip(a[0], b[0], strict=True))

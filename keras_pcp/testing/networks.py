"""Tiny networks, data for them, and comparisons, which all checks use."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

L = keras.layers


SAMPLES, SEED, TOLERANCE = 12, 1, 1e-4


def require(condition: bool, message: str) -> None:
    """Raises AssertionError with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Returns whether two arrays are equal except for rounding."""
    return np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())


def samples_for(model: keras.Model) -> tuple:
    """Returns random inputs and labels for a model."""
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(SAMPLES, *model.input_shape[1:])).astype("float32")
    labels = [rng.integers(0, t.shape[-1], SAMPLES) for t in model.outputs]
    return x, labels if len(labels) > 1 else labels[0]


def networks() -> Iterator[tuple[str, keras.Model]]:
    """Yields pairs of a name and a compiled network with random weights."""
    networks = {
        "a residual network": _residual,
        "a concatenation with two outputs": _concatenation,
        "a depthwise convolution": _depthwise,
        "a dense layer behind a flatten": _flatten,
        "a shortcut padded with zeros": _padded,
    }
    for what, network in networks.items():
        model = network(keras.Input((6, 6, 2)))
        rng = np.random.default_rng(SEED)
        for w in model.weights:
            if len(w.shape) > 1:
                w.assign(rng.normal(0, (2 / np.prod(w.shape[:-1])) ** 0.5, w.shape))
            else:
                w.assign(rng.uniform(0.5, 1.5, w.shape))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        count = len(model.outputs)
        model.compile(
            "sgd",
            [loss] * count if count > 1 else loss,
            run_eagerly=True,
            metrics=[["accuracy"]] * count if count > 1 else ["accuracy"],
        )
        yield what, model


def _block(x: Any, filters: int, kernel: int = 3, name: str | None = None, activation: str = "relu") -> Any:
    x = L.Conv2D(filters, kernel, padding="same", use_bias=False, name=name)(x)
    return L.Activation(activation)(L.BatchNormalization()(x))


def _residual(i: Any) -> keras.Model:
    x = _block(i, 5, name="stem")
    y = _block(_block(x, 4), 5, activation="linear")
    return _classify(i, L.ReLU()(L.Add()([x, y])))


def _concatenation(i: Any) -> keras.Model:
    a, b = _block(i, 4), _block(i, 3, 1)
    x = L.BatchNormalization()(L.Concatenate()([a, b, a]))
    model = _classify(i, _block(x, 5))
    return keras.Model(i, [model.output, L.Dense(2)(L.GlobalMaxPooling2D()(a))])


def _depthwise(i: Any) -> keras.Model:
    x = L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(_block(i, 4))
    return _classify(i, _block(L.ReLU()(L.BatchNormalization()(x)), 5, 1))


def _flatten(i: Any) -> keras.Model:
    x = L.Flatten()(L.MaxPooling2D()(_block(i, 4)))
    return keras.Model(i, L.Dense(3)(L.ReLU()(L.BatchNormalization()(L.Dense(5)(x)))))


def _padded(i: Any) -> keras.Model:
    x = _block(i, 3)
    wide = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2)))
    return _classify(i, L.ReLU()(L.Add()([wide, _block(x, 6, activation="linear")])))


def _classify(i: Any, x: Any) -> keras.Model:
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))

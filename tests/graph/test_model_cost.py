"""Costs against slow counts and published numbers."""

import keras
import numpy as np
import pytest
from zoo import build

import keras_pcp

L = keras.layers


@pytest.mark.parametrize("name", ["plain_flatten", "depthwise", "transposed", "grouped", "conv_1d", "conv_3d"])
def test_macs_are_counted_as_an_independent_slow_count(name):
    """Counts by watching shapes: a kernel element works once for each output position (input, if transposed)."""
    model = build(name)
    expected = 0
    for layer in model.layers:
        kind = type(layer).__name__
        if not getattr(layer, "weights", None) or kind in ("BatchNormalization", "PReLU", "Embedding"):
            continue
        shape = layer.input.shape if "Transpose" in kind else layer.output.shape
        kernels = [w for w in layer.weights if "kernel" in w.path]
        expected += sum(int(np.prod(shape[1:-1])) * int(np.prod(k.shape)) for k in kernels)
    assert keras_pcp.count_cost(model).macs == expected


def test_known_models_have_their_published_macs():
    """4.09 G for ResNet-50 with its stride in the first 1x1 convolution counts 3.86 G; MobileNetV2 0.30 G."""
    resnet = keras.applications.ResNet50(weights=None)
    assert keras_pcp.count_cost(resnet).macs == pytest.approx(3.86e9, rel=0.01)
    mobile = keras.applications.MobileNetV2(weights=None)
    assert keras_pcp.count_cost(mobile).macs == pytest.approx(0.30e9, rel=0.01)


def test_a_padded_shortcut_in_a_model_of_any_size_is_counted_at_the_size_of_the_call():
    any_size = keras.Input((None, None, 3))
    x = L.Conv2D(4, 1, use_bias=False)(any_size)
    wide = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, 2)))
    inner = keras.Model(any_size, L.Add()([wide, L.Conv2D(6, 1, use_bias=False)(x)]))
    i = keras.Input((8, 8, 3))
    model = keras.Model(i, L.GlobalAveragePooling2D()(inner(i)))
    assert keras_pcp.count_cost(model).macs == 64 * (3 * 4 + 4 * 6)


def test_bytes_follow_the_dtype():
    i = keras.Input((4,))
    half = keras.Model(i, L.Dense(3, dtype="float16")(i))
    assert keras_pcp.count_cost(half).bytes == 2 * 15

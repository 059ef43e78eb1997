"""What layers read, position by position."""

import keras
import numpy as np
import pytest

from keras_pcp.statistics.layer_inputs import draw, kernel_array, kernel_matrix, patches, window_of

L = keras.layers


CONVOLUTIONS = {
    "1d": (L.Conv1D(4, 3, strides=2), (3, 9, 2)),
    "1d_same": (L.Conv1D(4, 4, strides=3, padding="same"), (3, 10, 2)),
    "1d_causal": (L.Conv1D(4, 3, dilation_rate=2, padding="causal"), (2, 7, 2)),
    "2d": (L.Conv2D(5, (3, 2)), (2, 6, 5, 3)),
    "2d_same_strided": (L.Conv2D(5, (3, 2), strides=2, padding="same"), (2, 7, 6, 3)),
    "2d_dilated": (L.Conv2D(5, 3, dilation_rate=(2, 1), padding="same"), (2, 6, 6, 3)),
    "2d_far_strides": (L.Conv2D(5, 1, strides=3, padding="same"), (2, 8, 7, 3)),
    "2d_grouped": (L.Conv2D(6, 3, groups=2, padding="same"), (2, 5, 5, 4)),
    "3d": (L.Conv3D(3, 2, strides=(1, 2, 1), padding="same"), (2, 4, 5, 3, 2)),
    "dense": (L.Dense(4), (5, 3)),
    "dense_in_space": (L.Dense(4), (2, 5, 6, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("count", [4, 1000])
def test_what_is_read_times_the_kernel_is_the_output_of_the_layer(name, count):
    layer, shape = CONVOLUTIONS[name]
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected = np.asarray(layer(x))
    window = window_of(layer, x.ndim)
    chosen = draw(np.random.default_rng(1), len(x), window.space(shape), count)
    assert window.space(shape) == expected.shape[1:-1]
    found = patches(window, x, chosen) @ kernel_matrix(window, layer.kernel.numpy())
    found = np.moveaxis(found, 0, 1).reshape(*chosen.shape, -1) + layer.bias.numpy()
    flat = expected.reshape(len(x), -1, expected.shape[-1])
    np.testing.assert_allclose(found, flat[np.arange(len(x))[:, None], chosen], rtol=1e-4, atol=1e-5)
    kernel = layer.kernel.numpy()
    assert np.array_equal(kernel_array(kernel_matrix(window, kernel), kernel.shape), kernel)

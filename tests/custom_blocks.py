"""Custom layers that hide other layers."""

import keras
from keras import ops

L = keras.layers


class ConvBlock(L.Layer):
    """Layers, made in the constructor and in the call, raw operations, and a size taken from an attribute."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same", name="conv")
        self.bn = L.BatchNormalization(name="bn")
        self.squeeze = L.Conv2D(2, 1, activation="relu", name="squeeze")
        self.excite = L.Conv2D(filters, 1, activation="sigmoid", name="excite")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.bn.build((*input_shape[:-1], self.filters))
        self.squeeze.build((None, 1, 1, self.filters))
        self.excite.build((None, 1, 1, 2))

    def call(self, x, training=None):
        y = ops.silu(self.bn(self.conv(x), training=training))
        gate = L.Reshape((1, 1, self.filters))(ops.mean(y, axis=(1, 2)))
        return y * self.excite(self.squeeze(gate))

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


class TwoBlocks(L.Layer):
    """Blocks in a block, and a reshape that names the batch size."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.first = ConvBlock(filters, name="inner")
        self.second = ConvBlock(filters, name="other")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], self.filters))

    def call(self, x, training=False):
        y = self.first(x, training=training)
        batch, height, width, channels = ops.shape(y)
        y = ops.reshape(ops.reshape(y, (batch, -1, channels)), (batch, height, width, channels))
        return y + self.second(y, training=training)

    def get_config(self):
        return super().get_config() | {"filters": self.filters}

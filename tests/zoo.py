"""A zoo of tiny models, one for each way in which channels can be coupled. All weights are random, statistics too."""

from collections.abc import Callable, Iterable

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import keras_pcp


class WithoutTraining(keras.Model):
    """Its loss has the arguments that Keras gave one before 3.3."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 2 * super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)


class Odd(L.Layer):
    """A layer without a rule that cannot be opened, because it owns a weight."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=())

    def call(self, x):
        return x * self.factor


ZOO: dict[str, Callable[[], keras.Model]] = {}
# Models with layers that mix channels statistically: pruned and masked differ by design.
INEXACT = {"layer_norm", "group_norm", "attention", "channel_softmax", "unit_length"}
# One model for each family; tests run on these by default, and on all with `-m ""`.
TYPICAL = {"plain_flatten", "residual", "concat", "depthwise", "grouped", "transposed", "shared_layers", "nested"}
TYPICAL |= {"two_in_two_out", "slicing", "layer_norm", "attention_exact", "einsum_dense", "two_domains"}


def zoo(function):
    ZOO[function.__name__] = function
    return function


def each(names: Iterable[str]) -> list:
    """Names of models as parameters of a test; it is slow on those that are not typical."""
    return [name if name in TYPICAL else pytest.param(name, marks=pytest.mark.slow) for name in names]


def build(name: str, seed: int = 0) -> keras.Model:
    """Builds a zoo model with random weights."""
    keras.utils.set_random_seed(seed)
    model = ZOO[name]()
    rng = np.random.default_rng(seed)
    for w in model.weights:
        if "moving_variance" in w.path or "gamma" in w.path:
            w.assign(rng.uniform(0.5, 1.5, w.shape))
        elif len(w.shape) == 1:
            w.assign(rng.normal(0, 0.3, w.shape))
    return model


def inputs_for(model: keras.Model, batch: int = 3, seed: int = 1):
    rng = np.random.default_rng(seed)
    arrays = []
    for t in model.inputs:
        shape = (batch, *t.shape[1:])
        arrays.append(rng.integers(0, 7, shape) if "int" in t.dtype else rng.normal(size=shape).astype("float32"))
    return arrays if len(arrays) > 1 else arrays[0]


def outputs_of(model: keras.Model, x) -> list[np.ndarray]:
    return [np.asarray(o) for o in keras.tree.flatten(model(x, training=False))]


def random_selection(graph, seed: int) -> keras_pcp.Selection:
    """Keeps a random share of each group, at least one channel."""
    rng = np.random.default_rng(seed)
    keep = {}
    for g in graph:
        mask = rng.random(g.num_channels) < rng.uniform(0.2, 0.9)
        mask[rng.integers(g.num_channels)] = True
        keep[g.name] = mask
    return keras_pcp.Selection(keep)


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        scale = max(np.abs(b).max(), 1e-3)
        assert np.abs(a - b).max() / scale <= tolerance


def conv_bn(x, filters, kernel=3, strides=1, activation="relu", **kwargs):
    x = L.Conv2D(filters, kernel, strides, padding="same", use_bias=False, **kwargs)(x)
    x = L.BatchNormalization()(x)
    return L.Activation(activation)(x) if activation else x


def classify(x, inputs, classes=4):
    return keras.Model(inputs, L.Dense(classes)(L.GlobalAveragePooling2D()(x)))


@zoo
def plain_flatten():
    i = keras.Input((8, 8, 3))
    x = L.MaxPooling2D()(conv_bn(i, 8))
    x = L.Conv2D(6, 3, activation="relu")(x)
    x = L.Dense(10, activation="tanh")(L.Flatten()(x))
    return keras.Model(i, L.Dense(4, activation="softmax")(L.Dropout(0.3)(x)))


@zoo
def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            L.ZeroPadding2D(1),
            L.Conv2D(7, 3),
            L.PReLU(shared_axes=[1, 2]),
            L.Cropping2D(1),
            L.AveragePooling2D(2),
            L.Conv2D(6, 2),
            L.PReLU(),
            L.Flatten(),
            L.Dense(3),
        ]
    )


@zoo
def residual():
    i = keras.Input((8, 8, 3))
    x = conv_bn(i, 8)
    for filters, strides in ((8, 1), (12, 2), (12, 1)):
        shortcut = x if strides == 1 else conv_bn(x, filters, 1, strides, None)
        y = conv_bn(conv_bn(x, filters, strides=strides), filters, activation=None)
        x = L.ReLU()(L.Add()([y, shortcut]))
    return classify(x, i)


@zoo
def bottleneck():
    i = keras.Input((8, 8, 3))
    x = conv_bn(i, 6, activation="swish")
    shortcut = L.Conv2D(16, 1, strides=2)(x)
    y = L.Conv2D(16, 1)(conv_bn(conv_bn(x, 5, 1), 5, strides=2))
    x = L.BatchNormalization(scale=False)(L.Add()([shortcut, y]))
    x = L.Average()([x, L.Conv2D(16, 1)(L.BatchNormalization(center=False)(x))])
    return classify(L.ReLU()(x), i)


@zoo
def concat():
    i = keras.Input((8, 8, 3))
    a, b = conv_bn(i, 5, 1), conv_bn(conv_bn(i, 4, 1), 6)
    c = L.AveragePooling2D(3, 1, "same")(i)
    x = L.BatchNormalization()(L.Concatenate()([a, b, c, a]))
    return classify(L.Conv2D(7, 3)(L.ReLU()(x)), i)


@zoo
def concat_added():
    """A group tied over a part of another: the concatenation of two layers is added to a third."""
    i = keras.Input((6, 6, 3))
    x = L.Concatenate()([L.Conv2D(4, 1)(i), L.Conv2D(6, 1)(i)])
    return classify(L.Maximum()([x, L.Conv2D(10, 1)(i)]), i)


@zoo
def dense_block():
    i = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, padding="same")(i)
    for _ in range(3):
        y = L.Conv2D(4, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))
        x = L.Concatenate()([x, y])
    x = L.AveragePooling2D(2)(L.Conv2D(9, 1)(L.ReLU()(L.BatchNormalization()(x))))
    return keras.Model(i, L.Dense(4)(L.Flatten()(x)))


@zoo
def depthwise():
    i = keras.Input((8, 8, 3))
    x = conv_bn(i, 6)
    y = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(conv_bn(x, 9, 1, activation="relu6"))
    y = L.BatchNormalization()(L.Conv2D(6, 1)(L.ReLU(6.0)(L.BatchNormalization()(y))))
    x = L.SeparableConv2D(7, 3, depth_multiplier=2, activation="relu")(L.Add()([x, y]))
    return classify(x, i)


@zoo
def squeeze_excite():
    i = keras.Input((8, 8, 3))
    x = conv_bn(i, 8)
    g = L.Reshape((1, 1, 8))(L.GlobalAveragePooling2D()(x))
    x = L.Multiply()([x, L.Conv2D(8, 1, activation="sigmoid")(L.Conv2D(3, 1, activation="relu")(g))])
    g = L.GlobalMaxPooling2D(keepdims=True)(x)
    g = ops.relu6(L.Conv2D(8, 1)(g) + 3.0) * (1.0 / 6.0)
    return classify(L.Conv2D(5, 3)(L.Multiply()([g, x])), i)


@zoo
def spatial_gate():
    """A one-channel gate is broadcast over all channels and ties nothing."""
    i = keras.Input((6, 6, 3))
    x = conv_bn(i, 6)
    return classify(L.Conv2D(5, 1)(L.Multiply()([x, L.Conv2D(1, 1, activation="sigmoid")(x)])), i)


@zoo
def transposed():
    i = keras.Input((5,))
    x = L.Reshape((3, 3, 4))(L.Dense(36, activation="relu")(i))
    x = L.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(x)
    x = L.UpSampling2D()(L.BatchNormalization()(x))
    return keras.Model(i, L.Conv2DTranspose(2, 2, use_bias=False)(L.LeakyReLU()(x)))


@zoo
def grouped():
    i = keras.Input((6, 6, 4))
    x = L.Conv2D(12, 3, groups=4)(L.Conv2D(8, 1)(i))
    x = L.Conv2D(12, 3, groups=12, padding="same", activation="relu")(L.BatchNormalization()(x))
    return classify(L.Conv2D(6, 1)(L.Conv2D(24, 1, groups=12)(x)), i)


@zoo
def channel_shuffle():
    i = keras.Input((6, 6, 4))
    x = L.Conv2D(12, 1, groups=2)(L.Conv2D(8, 1)(i))
    x = ops.reshape(x, (-1, 6, 6, 2, 6))
    x = ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 6, 6, 12))
    return classify(L.Conv2D(6, 3, groups=2)(L.ReLU()(x)), i)


@zoo
def u_net():
    i = keras.Input((8, 8, 3))
    skip = conv_bn(i, 6)
    x = conv_bn(L.MaxPooling2D()(skip), 8)
    x = L.Conv2DTranspose(5, 2, strides=2)(x)
    x = conv_bn(L.Concatenate()([skip, x]), 6)
    return keras.Model(i, L.Conv2D(2, 1, activation="sigmoid")(x))


@zoo
def feature_pyramid():
    """Levels of one width, and a head that all levels share."""
    i = keras.Input((8, 8, 3))
    fine = conv_bn(i, 6)
    coarse = conv_bn(fine, 8, strides=2)
    top = L.Conv2D(5, 1)(coarse)
    levels = [L.Add()([L.Conv2D(5, 1)(fine), L.UpSampling2D()(top)]), top]
    tower, norm, logits = L.Conv2D(7, 3, padding="same"), L.BatchNormalization(), L.Conv2D(3, 1)
    return keras.Model(i, {f"level_{k}": logits(L.ReLU()(norm(tower(x)))) for k, x in enumerate(levels)})


@zoo
def single_shot_detector():
    """Boxes and scores of all scales, one behind the other."""
    i = keras.Input((8, 8, 3))
    fine = conv_bn(i, 6)
    coarse = conv_bn(L.MaxPooling2D()(fine), 9)
    boxes = [L.Reshape((-1, 4))(L.Conv2D(2 * 4, 3, padding="same")(x)) for x in (fine, coarse)]
    scores = [L.Reshape((-1, 3))(L.Conv2D(2 * 3, 1)(conv_bn(x, 5))) for x in (fine, coarse)]
    joined = [L.Concatenate(axis=1)(parts) for parts in (boxes, scores)]
    return keras.Model(i, [joined[0], L.Softmax()(joined[1])])


@zoo
def shared_layers():
    a, b = keras.Input((6, 6, 2)), keras.Input((6, 6, 2))
    stem, conv, bn = L.Conv2D(5, 1), L.Conv2D(7, 3), L.BatchNormalization()
    left, right = (L.Flatten()(L.ReLU()(bn(conv(stem(t))))) for t in (a, b))
    return keras.Model([a, b], L.Dense(3)(L.Subtract()([left, right])))


@zoo
def nested():
    b = keras.Input((8, 8, 3))
    base = keras.Model(b, conv_bn(conv_bn(b, 6), 8, strides=2), name="base")
    neck = keras.Sequential([keras.Input((4, 4, 8)), L.Conv2D(5, 1, name="conv"), L.ReLU()], name="neck")
    i = keras.Input((8, 8, 3))
    x = L.Rescaling(0.5)(i)
    return keras.Model(i, L.Dense(4)(L.GlobalAveragePooling2D()(neck(base(x)))))


@zoo
def nested_twice():
    """A nested model without weights on its inputs is called on two different tensors."""
    b = keras.Input((6, 6, 6))
    pool = keras.Model(b, L.MaxPooling2D()(L.ReLU()(b)), name="pool")
    i = keras.Input((6, 6, 3))
    x = L.Concatenate()([pool(L.Conv2D(6, 1)(i)), pool(L.Conv2D(6, 3, padding="same")(i))])
    return classify(L.Conv2D(5, 1)(x), i)


@zoo
def two_in_two_out():
    a, b = keras.Input((8, 8, 3)), keras.Input((5,))
    x = conv_bn(a, 6)
    y = L.Concatenate()([L.GlobalMaxPooling2D()(x), L.Dense(7, activation="relu")(b)])
    return keras.Model([a, b], [L.Dense(3)(y), L.Conv2D(2, 1)(x)])


@zoo
def slicing():
    i = keras.Input((6, 6, 3))
    x = L.Conv2D(12, 1)(i)
    a, b = ops.split(x, [5], axis=-1)
    c, d = ops.split(L.Conv2D(8, 1)(x), 2, axis=-1)
    e = x[:, :, :, 3:9]
    y = L.Concatenate()([L.Conv2D(4, 1)(a), b, L.Add()([c, d]), e])
    return classify(L.Conv2D(5, 1)(L.ReLU()(y)), i)


@zoo
def layer_norm():
    i = keras.Input((6, 6, 3))
    x = L.Conv2D(8, 3, padding="same")(i)
    y = L.Dense(8)(L.Dense(12, activation="gelu")(L.LayerNormalization()(x)))
    return classify(L.Add()([x, y]), i)


@zoo
def group_norm():
    i = keras.Input((6, 6, 3))
    x = L.ReLU()(L.GroupNormalization(groups=2)(L.Conv2D(8, 3)(i)))
    return classify(L.Conv2D(5, 1)(x), i)


@zoo
def instance_norm():
    i = keras.Input((6, 6, 3))
    x = L.ReLU()(L.GroupNormalization(groups=-1)(L.Conv2D(8, 3)(i)))
    return classify(L.Conv2D(5, 1)(x), i)


@zoo
def channel_softmax():
    i = keras.Input((6, 6, 3))
    return classify(L.Conv2D(5, 1)(L.Softmax()(L.Conv2D(8, 3)(i))), i)


@zoo
def single_channel():
    i = keras.Input((8, 8, 1))
    x = L.Conv2D(6, 3)(L.Conv2D(1, 3)(i))
    return classify(L.Conv2D(6, 3, groups=1)(L.Conv2D(1, 1)(x)), i)


@zoo
def unused_branch():
    """Half of a layer's channels and a whole layer feed nothing."""
    i = keras.Input((6, 6, 3))
    x = L.Conv2D(8, 3)(i)
    L.Conv2D(5, 1)(x)
    return classify(L.Conv2D(6, 1)(x[..., :4]), i)


@zoo
def conv_1d():
    i = keras.Input((12,), dtype="int32")
    x = L.Conv1D(6, 3, activation="relu")(L.Embedding(7, 8)(i))
    x = L.SeparableConv1D(5, 3)(L.MaxPooling1D()(L.BatchNormalization()(x)))
    return keras.Model(i, L.Dense(3)(L.GlobalMaxPooling1D()(x)))


@zoo
def conv_3d():
    i = keras.Input((6, 6, 6, 2))
    x = L.Conv3D(5, 3, activation="relu")(i)
    x = L.Conv3DTranspose(4, 2)(L.BatchNormalization()(x))
    return keras.Model(i, L.Dense(3)(L.Flatten()(x)))


@zoo
def attention():
    i = keras.Input((5, 6))
    x = L.Dense(8)(i)
    y = L.LayerNormalization()(x)
    x = L.Add()([x, L.MultiHeadAttention(4, 3)(y, y)])
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


@zoo
def attention_exact():
    i = keras.Input((5, 6))
    x = L.Dense(8, activation="relu")(i)
    y = L.MultiHeadAttention(4, 3, value_dim=2, output_shape=7, use_bias=False)(x, L.Dense(5)(i))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(y)))


@zoo
def attention_unequal():
    """The output projection has the query's width by default, but is pruned apart from it."""
    i = keras.Input((5, 6))
    x = L.MultiHeadAttention(3, 4)(L.Dense(8)(i), L.Dense(7)(i))
    return keras.Model(i, L.Dense(3)(L.GlobalMaxPooling1D()(x)))


@zoo
def raw_operations():
    i = keras.Input((6, 6, 3))
    x = L.Conv2D(8, 1)(i)
    y = ops.mean(x, axis=(1, 2), keepdims=True)
    x = ops.maximum(x - y, 0.1 * x) / 2.0
    x = ops.pad(ops.max_pool(x, 2), ((0, 0), (1, 1), (1, 1), (2, 0)))
    x = ops.transpose(L.Permute((3, 1, 2))(ops.silu(x)), (0, 2, 3, 1))
    x = ops.squeeze(ops.expand_dims(x, 1), 1)
    return classify(L.Conv2D(5, 1)(ops.concatenate([x, ops.clip(x, -1, 1)], axis=-1)), i)


@zoo
def zero_padded_shortcuts():
    """The shortcuts of the first residual networks (zeros on both sides), and of pyramid networks (zeros at the end)."""
    i = keras.Input((8, 8, 3))
    first = conv_bn(i, 4)
    y = L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(conv_bn(first, 6, strides=2)))
    second = L.ReLU()(L.Add()([ops.pad(first[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2))), y]))
    y = L.BatchNormalization()(L.Conv2D(11, 3, padding="same")(conv_bn(second, 6, strides=2)))
    return classify(L.ReLU()(L.Add()([ops.pad(second, ((0, 0), (0, 0), (0, 0), (0, 3)))[:, ::2, ::2], y])), i)


@zoo
def mixer():
    """Tokens and channels swap places."""
    i = keras.Input((6, 5))
    x = L.Dense(8)(i)
    y = L.Permute((2, 1))(L.Dense(6)(L.Dense(7, activation="gelu")(L.Permute((2, 1))(x))))
    return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling1D()(L.Add()([x, y]))))


@zoo
def pixel_shuffle():
    """Depth to space by a reshape, a transpose and a reshape, by the operation, and back."""
    i = keras.Input((4, 4, 3))
    x = ops.reshape(L.Conv2D(12, 3, padding="same")(i), (-1, 4, 4, 2, 2, 3))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 8, 8, 3))
    y = conv_bn(x, 8)
    if hasattr(ops, "depth_to_space"):
        y = ops.depth_to_space(ops.space_to_depth(L.Conv2D(8, 1)(ops.depth_to_space(y, 2)), 2), 2)
        y = ops.space_to_depth(y, 2)
    return classify(L.Conv2D(5, 1)(ops.image.extract_patches(y, 2)), i)


@zoo
def stacked():
    i = keras.Input((6, 6, 3))
    a, b, c = L.Conv2D(7, 1)(i), L.Conv2D(7, 3, padding="same")(i), L.Conv2D(7, 1, use_bias=False)(i)
    x = ops.stack([a, b], axis=3)
    first, second = ops.unstack(L.BatchNormalization()(x), axis=3)
    x = ops.sum(ops.stack([first, second, ops.abs(c)], axis=1), axis=1)
    return classify(L.Conv2D(4, 1)(ops.append(x, L.Conv2D(3, 1)(x), axis=-1)), i)


@zoo
def einsum_dense():
    i = keras.Input((6, 5))
    x = L.EinsumDense("abc,cd->abd", (6, 8), bias_axes="d", activation="relu")(i)
    x = L.EinsumDense("abc,cde->abde", (6, 3, 4), bias_axes="de")(x)
    x = L.EinsumDense("abde,def->abf", (6, 7))(L.BatchNormalization()(x))
    x = L.EinsumDense("...c,cd->...d", 5, activation="tanh")(L.GlobalMaxPooling1D()(x))
    return keras.Model(i, L.Dense(3)(x))


@zoo
def einsums():
    """A tensor-wise gate, a contraction over space, and attention over pixels that leaves the values' channels free."""
    i = keras.Input((4, 4, 3))
    x, gate = L.Reshape((16, 6))(L.Conv2D(6, 1)(i)), L.Dense(6, activation="sigmoid")(L.GlobalAveragePooling2D()(i))
    x = ops.einsum("bnc,bc->bnc", x, gate)
    near = ops.softmax(ops.einsum("bic,bjc->bij", L.Dense(3)(x), L.Dense(3)(x)))
    value = L.Dense(7)(x)
    y = ops.matmul(near, ops.einsum("...ij,...jc->...ic", near, value))
    return keras.Model(i, L.Dense(4)(ops.einsum("bnc->bc", y)))


@zoo
def repetition():
    i = keras.Input((4, 4, 3))
    x = L.ReLU()(L.Conv2D(6, 1)(i))
    x = ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=-1)
    x = ops.tile(L.BatchNormalization()(x), (1, 1, 2, 2))
    x = ops.concatenate([ops.flip(x, axis=-1), ops.flip(x, axis=2), ops.roll(x, 1, axis=1)], axis=-1)
    y = ops.tile(L.GlobalMaxPooling2D()(x), 3)
    return keras.Model(i, L.Dense(4)(y))


@zoo
def along_axes():
    """Sorting, picking and sums along space leave channels free."""
    i = keras.Input((12, 3))
    x = L.Conv1D(6, 1)(i)
    x = ops.cumsum(ops.sort(x, axis=1), axis=1) + ops.take_along_axis(x, ops.argsort(x, axis=1), axis=1)
    x = ops.take(x, np.array([[0, 3], [5, 5]]), axis=1)
    x = ops.take(L.BatchNormalization()(x), 1, axis=1)
    x, _ = ops.top_k(ops.transpose(x, (0, 2, 1)), 2)
    x = L.Conv1D(6, 1)(ops.transpose(x, (0, 2, 1)))
    mean, variance = ops.moments(x, axes=[1])
    y = L.Dense(6)(ops.concatenate([mean, variance, ops.median(x, axis=1), ops.norm(x, axis=1)], axis=1))
    return keras.Model(i, L.Dense(4)(ops.clip(y, -1.0, 1.0)))


@zoo
def gated_linear_unit():
    i = keras.Input((6, 6, 3))
    return classify(L.Conv2D(5, 1)(ops.glu(L.Conv2D(12, 1)(i))), i)


@zoo
def unit_length():
    i = keras.Input((6, 6, 3))
    return classify(L.Conv2D(5, 1)(ops.normalize(L.Conv2D(8, 1)(i), axis=-1)), i)


@zoo
def two_domains():
    i = keras.Input((8, 8, 2))
    features = keras.Model(i, L.Flatten()(L.Conv2D(5, 3, activation="relu")(i)))
    domain_head = keras.Sequential([L.Dense(4, activation="relu"), L.Dense(1)])
    return keras_pcp.build_dann(features, L.Dense(3), domain_head, weight=0.5)

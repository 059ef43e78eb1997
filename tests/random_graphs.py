"""Random functional models, and the equations checked on them.

    python tests/random_graphs.py --count 2000 --start 0

prints failing seeds with their errors, and a summary line of JSON at the end.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers as L
from keras import ops
from zoo import assert_close, inputs_for, outputs_of, random_selection

import keras_pcp
from keras_pcp.surgery.in_place import shrink

STEPS: dict[str, tuple[Callable, float]] = {}
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "swish", "sigmoid", "gelu", None, None]
MERGES = [L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum]


def step(weight: float):
    def register(function):
        STEPS[function.__name__] = (function, weight)
        return function

    return register


def random_model(seed: int) -> keras.Model:
    """Builds a random model of 4-D tensors with random weights, statistics of batch normalization included."""
    keras.utils.set_random_seed(seed)
    maker = Maker(np.random.default_rng(seed))
    model = maker.model()
    for w in model.weights:
        if "moving_variance" in w.path or "gamma" in w.path:
            w.assign(maker.rng.uniform(0.5, 1.5, w.shape))
        elif len(w.shape) == 1 or "alpha" in w.path or "bias" in w.path:
            w.assign(maker.rng.normal(0, 0.3, w.shape))
    return model


class Maker:
    """Grows a graph step by step; a step takes one image tensor and returns some new ones."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.depth = rng, 0
        self.inexact = rng.random() < 0.1
        self.used: set[int] = set()

    def model(self) -> keras.Model:
        size = self.int(5, 7)
        inputs = [keras.Input((size, size, self.int(1, 4))) for _ in range(1 + self.chance(0.25))]
        pool = list(inputs)
        if self.chance(0.15):
            vector = keras.Input((self.int(3, 6),))
            inputs.append(vector)
            pool.append(L.Reshape((4, 4, 3))(L.Dense(48, activation=self.activation())(vector)))
        self.grow(pool, self.int(4, 11))
        return keras.Model(inputs, self.heads(pool))

    def grow(self, pool: list, count: int) -> None:
        names, weights = list(STEPS), np.array([w for _, w in STEPS.values()])
        self.pool = pool
        made = 0
        while made < count:
            x = self.pick()
            name = self.rng.choice(names, p=weights / weights.sum())
            new = STEPS[name][0](self, x)
            if new is not None:
                made += 1
                pool.extend(self.bounded(y) for y in (new if isinstance(new, list) else [new]))

    def heads(self, pool: list) -> list:
        """Turns every tensor that nothing reads, and some others, into outputs of the model."""
        loose = [x for x in pool[1:] if id(x) not in self.used] or pool[-1:]
        while len(loose) > 3:
            a, b = loose.pop(0), loose.pop(0)
            loose.append(L.Concatenate()([a, self.resized(b, a)]))
        if self.chance(0.15):
            return [self.anchors([*loose, self.pick()])]
        return [self.head(x) for x in loose]

    def head(self, x):
        kind = self.int(0, 9)
        if kind == 0:
            return x
        if kind <= 2:
            return L.Conv2D(2, 1, activation="sigmoid")(x)
        if kind <= 5:
            return L.Dense(3)(L.Flatten()(x))
        y = self.one(L.GlobalAveragePooling2D(), L.GlobalMaxPooling2D())(x)
        if kind == 6:
            y = L.Concatenate()([y, L.Dense(4, activation="tanh")(y), ops.mean(x, axis=(1, 2))])
        if kind == 7:
            y = L.BatchNormalization()(L.Dense(x.shape[-1])(y) + y)
        return L.Dense(4, activation=self.one("softmax", None))(y)

    def anchors(self, tensors: list):
        """Boxes and classes of several feature maps, reshaped and joined (SSD)."""
        boxes, shared = [], L.Conv2D(8, 3, padding="same") if self.chance(0.3) else None
        width = self.int(3, 9) if shared else None
        for x in tensors:
            x = self.project(x, width) if shared else x
            y = shared(x) if shared else L.Conv2D(4 * self.int(1, 3), 3, padding="same")(x)
            boxes.append(
                L.Reshape((-1, 4))(y) if self.chance(0.5) else ops.reshape(y, (-1, math.prod(y.shape[1:]) // 4, 4))
            )
        joined = L.Concatenate(axis=1)(boxes)
        return joined if self.chance(0.5) else L.Dense(2)(L.Dense(5, activation="relu")(joined))

    def int(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one(self, *choices):
        return choices[self.int(0, len(choices) - 1)]

    def activation(self):
        return self.one(*ACTIVATIONS)

    def width(self) -> int:
        return self.int(2, 9)

    def divisor(self, number: int) -> int:
        return self.one(*[d for d in range(1, number + 1) if number % d == 0])

    def pick(self):
        x = self.pool[max(0, len(self.pool) - 1 - int(self.rng.exponential(1.5)))]
        self.used.add(id(x))
        return x

    def project(self, x, channels: int):
        return x if x.shape[-1] == channels else L.Conv2D(channels, 1, use_bias=self.chance(0.5))(x)

    def resized(self, x, like):
        same = x.shape[1:3] == like.shape[1:3]
        return x if same else L.Resizing(*like.shape[1:3], interpolation="nearest")(x)

    def mate(self, x):
        """Returns another tensor of the shape of `x`."""
        same = [y for y in self.pool if y.shape == x.shape and y is not x]
        if same and self.chance(0.7):
            y = self.one(*same)
            self.used.add(id(y))
            return y
        return self.project(self.resized(self.pick(), x), x.shape[-1])

    def bounded(self, x):
        if x.shape[-1] > 20:
            x = L.Conv2D(self.width(), 1)(x)
        return L.AveragePooling2D(2)(x) if x.shape[1] > 9 or x.shape[2] > 9 else x


@step(4)
def convolution(m: Maker, x):
    kernel, dilation = m.one(1, 2, 3, 3), m.one(1, 1, 2)
    strides = m.one(1, 1, 2) if dilation == 1 else 1
    padding = "valid" if min(x.shape[1:3]) > (kernel - 1) * dilation + 2 and m.chance(0.4) else "same"
    return L.Conv2D(
        m.width(), kernel, strides, padding, dilation_rate=dilation, use_bias=m.chance(0.6), activation=m.activation()
    )(x)


@step(0.7)
def grouped_convolution(m: Maker, x):
    groups = m.divisor(x.shape[-1])
    return L.Conv2D(groups * m.int(1, 2), m.one(1, 3), padding="same", groups=groups, use_bias=m.chance(0.5))(x)


@step(1.5)
def depthwise(m: Maker, x):
    x = L.DepthwiseConv2D(3, m.one(1, 1, 2), "same", m.one(1, 2), use_bias=m.chance(0.5), activation=m.activation())(x)
    return x if m.chance(0.5) else L.Conv2D(m.width(), 1)(x)


@step(1)
def separable(m: Maker, x):
    return L.SeparableConv2D(
        m.width(),
        3,
        m.one(1, 1, 2),
        "same",
        depth_multiplier=m.one(1, 2),
        use_bias=m.chance(0.5),
        activation=m.activation(),
    )(x)


@step(1)
def transposed_convolution(m: Maker, x):
    return L.Conv2DTranspose(m.width(), m.one(2, 3), m.one(1, 2), "same", use_bias=m.chance(0.5))(x)


@step(1)
def dense(m: Maker, x):
    if m.chance(0.6):
        return L.Dense(m.width(), use_bias=m.chance(0.5), activation=m.activation())(x)
    y = L.Dense(18, activation=m.activation())(L.Flatten()(x))
    return L.Reshape((3, 3, 2))(y) if m.chance(0.5) else ops.reshape(y, (-1, 3, 3, 2))


@step(3)
def normalization(m: Maker, x):
    x = L.BatchNormalization(scale=m.chance(0.7), center=m.chance(0.7))(x)
    return L.Activation(m.one("relu", "tanh", "swish"))(x) if m.chance(0.6) else x


@step(15)
def statistical(m: Maker, x):
    if not m.inexact:
        return None
    groups = m.divisor(x.shape[-1])
    return m.one(L.LayerNormalization(), L.GroupNormalization(groups), L.Softmax(), L.UnitNormalization())(x)


@step(1.5)
def elementwise(m: Maker, x):
    return m.one(
        L.PReLU(shared_axes=[1, 2]),
        L.PReLU(),
        L.ReLU(6.0),
        L.LeakyReLU(),
        L.Dropout(0.2),
        L.SpatialDropout2D(0.2),
        L.Activation("tanh"),
        lambda t: 0.5 * t + 1.0,
        ops.abs,
        ops.silu,
        lambda t: ops.clip(t, -2, 2),
        L.Rescaling(0.5),
        L.GroupNormalization(-1),
        lambda t: ops.where(t > 0, t, 0.3 * t),
    )(x)


@step(3)
def merge(m: Maker, x):
    y = m.mate(x)
    if m.chance(0.3):
        return m.one(ops.add, ops.subtract, ops.multiply, ops.maximum)(x, y)
    merged = m.one(*MERGES)
    return merged()([x, y] if m.chance(0.8) or merged is L.Subtract else [x, y, m.mate(x)])


@step(2)
def residual(m: Maker, x):
    y = L.Conv2D(m.width(), m.one(1, 3), padding="same", use_bias=False)(x)
    y = L.Activation("relu")(L.BatchNormalization()(y))
    return L.Add()([x, L.Conv2D(x.shape[-1], 3, padding="same")(y)])


@step(1)
def padded_residual(m: Maker, x):
    """A shortcut with constant channels before and after its own."""
    before, after, value = m.int(0, 4), m.int(0, 4), m.one(0.0, 0.0, 0.5)
    wide = ops.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)), constant_values=value)
    if m.chance(0.2):
        return wide
    y = L.Conv2D(m.width(), m.one(1, 3), padding="same", activation=m.activation())(x)
    return L.Add()([wide, L.Conv2D(wide.shape[-1], 3, padding="same")(y)])


@step(1.5)
def squeeze_excite(m: Maker, x):
    channels, kind = x.shape[-1], m.int(0, 3)
    if kind == 0:
        g = L.GlobalAveragePooling2D(keepdims=True)(x)
        return L.Multiply()([x, L.Conv2D(channels, 1, activation="sigmoid")(L.Conv2D(3, 1, activation="relu")(g))])
    if kind == 1:
        g = L.Dense(channels, activation="sigmoid")(L.Dense(3, activation="tanh")(L.GlobalMaxPooling2D()(x)))
        return L.Multiply()([L.Reshape((1, 1, channels))(g), x])
    if kind == 2:
        g = ops.sigmoid(L.Dense(channels)(ops.mean(x, axis=(1, 2))))
        return ops.einsum("bhwc,bc->bhwc", x, g)
    return x * ops.hard_sigmoid(ops.max(x, axis=(1, 2), keepdims=True))


@step(1)
def gate(m: Maker, x):
    """A single channel that is broadcast over all others."""
    if m.chance(0.3):
        return x * L.Reshape((1, 1, 1))(L.Dense(1, activation="sigmoid")(L.GlobalAveragePooling2D()(x)))
    return L.Multiply()([x, L.Conv2D(1, 1, activation="sigmoid")(m.resized(m.pick(), x))])


@step(3)
def concatenation(m: Maker, x):
    parts = [x, *(m.resized(m.pick(), x) for _ in range(m.int(1, 3)))]
    order = m.rng.permutation(len(parts))
    parts = [parts[i] for i in order]
    if m.chance(0.2):
        return ops.concatenate(parts, axis=m.one(-1, 3))
    if m.chance(0.15):
        return L.Concatenate(axis=m.one(1, 2))([x, m.mate(x)])
    return L.Concatenate()(parts)


@step(1.5)
def slicing(m: Maker, x):
    channels, kind = x.shape[-1], m.int(0, 4)
    if channels < 2:
        return None
    cut = m.int(1, channels - 1)
    if kind == 0:
        return x[..., :cut] if m.chance(0.5) else x[:, :, :, cut:]
    if kind == 1:
        return [x[:, 1:, :-1, cut - 1 : cut + 1], x[..., -3:]]
    if kind == 2:
        parts = ops.split(x, [cut], axis=-1)
        return L.Concatenate()([L.Conv2D(m.width(), 1)(parts[1]), parts[0]])
    if kind == 3:
        runs = m.divisor(channels)
        parts = ops.split(x, runs, axis=m.one(-1, 3))
        return parts[0] if m.chance(0.5) else L.Concatenate()([L.ReLU()(parts[-1]), *parts[:-1]])
    return ops.flip(x, axis=m.one(1, -1))


@step(1)
def channel_shuffle(m: Maker, x):
    (_, h, w, c), groups = x.shape, m.divisor(x.shape[-1])
    if m.chance(0.5):
        y = ops.transpose(ops.reshape(x, (-1, h, w, groups, c // groups)), (0, 1, 2, 4, 3))
        return ops.reshape(y, (-1, h, w, c))
    return L.Reshape((h, w, c))(L.Permute((1, 2, 4, 3))(L.Reshape((h, w, groups, -1))(x)))


@step(1)
def pixel_shuffle(m: Maker, x):
    (_, h, w, _), kind = x.shape, m.int(0, 2)
    if kind == 0:
        return ops.space_to_depth(x, 2) if h % 2 == w % 2 == 0 and hasattr(ops, "space_to_depth") else None
    x = m.project(x, 4 * m.int(1, 3))
    if kind == 1 and hasattr(ops, "depth_to_space"):
        return ops.depth_to_space(x, 2)
    y = ops.reshape(x, (-1, h, w, 2, 2, x.shape[-1] // 4))
    return ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 2 * h, 2 * w, x.shape[-1] // 4))


@step(2)
def resolution(m: Maker, x):
    layers = [
        L.ZeroPadding2D(((1, 0), (0, 1))),
        L.UpSampling2D(2),
        lambda t: ops.pad(t, ((0, 0), (1, 0), (0, 1), (0, 0))),
        lambda t: ops.pad(t, ((0, 0), (0, 0), (0, 0), (1, 2))),
        L.AveragePooling2D(2, 1, "same"),
        L.MaxPooling2D(3, 2, "same"),
        lambda t: ops.average_pool(t, 2, 1, "same"),
    ]
    if min(x.shape[1:3]) > 3:
        layers += [L.Cropping2D(1), L.MaxPooling2D(), lambda t: t[:, 1:, ::2], L.CenterCrop(3, 3)]
    return m.one(*layers)(x)


@step(1)
def reduction(m: Maker, x):
    y = m.one(ops.mean, ops.sum, ops.max, ops.var)(x, axis=m.one(1, 2, (1, 2)), keepdims=True)
    return m.one(lambda a, b: a - 0.1 * b, lambda a, b: L.Concatenate()([a, a + b]), lambda a, b: a / (1 + ops.abs(b)))(
        x, y
    )


@step(1.5)
def stacking(m: Maker, x):
    tensors, axis = [x, m.mate(x), x][: m.int(2, 3)], m.int(1, 4)
    y = ops.stack(tensors, axis=axis)
    if m.chance(0.5):
        return m.one(ops.sum, ops.max, ops.mean)(y, axis=axis)
    return ops.unstack(y, axis=axis)[1]


@step(1)
def einsum(m: Maker, x):
    (_, h, w, c), kind = x.shape, m.int(0, 4)
    if kind == 0:
        return ops.einsum("bhwc,hk->bkwc", x, m.rng.normal(size=(h, 4)).astype("float32"))
    if kind == 1:
        return L.EinsumDense("bhwc,cd->bhwd", (h, w, m.width()), bias_axes=m.one(None, "d", "wd"))(x)
    if kind == 2:
        return L.EinsumDense("bhwc,c->bhwc", (h, w, c), bias_axes=m.one(None, "c"))(x)
    if kind == 3:
        y = L.EinsumDense("bhwc,cde->bhwde", (h, w, 2, m.int(2, 4)), bias_axes=m.one(None, "de"))(x)
        return ops.reshape(y, (-1, h, w, math.prod(y.shape[3:])))
    tokens = ops.reshape(x, (-1, h * w, c))
    near = ops.softmax(ops.matmul(L.Dense(3)(tokens), L.Permute((2, 1))(L.Dense(3)(tokens))))
    return ops.reshape(ops.einsum("bij,bjc->bic", near, tokens), (-1, h, w, c))


@step(1)
def tokens(m: Maker, x):
    _, h, w, c = x.shape
    y = L.Reshape((h * w, c))(x) if m.chance(0.5) else ops.reshape(x, (-1, h * w, c))
    y = m.one(L.Conv1D(m.width(), 3, padding="same"), L.Dense(m.width()), L.BatchNormalization(), L.ReLU())(y)
    return L.Reshape((h, w, y.shape[-1]))(y)


@step(1)
def transposition(m: Maker, x):
    if m.chance(0.4):
        return L.Permute((2, 1, 3))(x)
    y = ops.transpose(x, (0, 3, 1, 2))
    y = m.one(L.BatchNormalization(axis=1), ops.relu, L.Dense(x.shape[2]), L.Activation("tanh"))(y)
    return m.one(L.Permute((2, 3, 1)), lambda t: ops.moveaxis(t, 1, -1))(y)


@step(1)
def repetition(m: Maker, x):
    return m.one(
        lambda t: ops.repeat(t, 2, axis=m.int(1, 3)),
        lambda t: ops.tile(t, (1, 1, m.int(1, 2), m.int(1, 2))),
        lambda t: ops.flip(t, axis=m.int(1, 3)),
        lambda t: ops.roll(t, 1, axis=m.int(1, 2)),
        lambda t: ops.sort(t, axis=1),
        lambda t: ops.cumsum(t, axis=2),
        lambda t: ops.glu(t) if t.shape[-1] % 2 == 0 else t + 1,
        lambda t: ops.take(t, np.array([1, 0, 0]), axis=m.one(1, 2)),
        lambda t: ops.squeeze(ops.expand_dims(t, 2), 2) * 2,
    )(x)


@step(1)
def shared_layers(m: Maker, x):
    y = m.mate(x)
    layers = [m.one(L.Conv2D(m.width(), 3, padding="same"), L.Dense(m.width()), L.DepthwiseConv2D(2, padding="same"))]
    layers += [L.BatchNormalization()] * m.int(0, 1)
    for layer in layers:
        x, y = layer(x), layer(y)
    return [x, y]


@step(1)
def pyramid(m: Maker, x):
    """Lateral projections, a way down, one head for all levels (FPN)."""
    width, y = m.width(), m.pick()
    top, lateral = m.project(x, width), m.project(y, width)
    level = L.Add()([lateral, m.resized(top, lateral)])
    head = L.Conv2D(m.width(), 3, padding="same", activation="relu")
    return [head(top), head(level)]


@step(1.5)
def nested_model(m: Maker, x):
    """A functional or sequential model inside, called once or twice."""
    if m.depth:
        return None
    b = keras.Input(x.shape[1:])
    if m.chance(0.3):
        inner = keras.Sequential(
            [
                b,
                *m.one([L.ReLU()], [L.Conv2D(m.width(), 1)], [L.Conv2D(4, 3, padding="same")]),
                L.BatchNormalization(),
                L.Activation("tanh"),
            ]
        )
    else:
        outer, inside = m.pool, [b]
        m.depth = 1
        m.grow(inside, m.int(1, 3))
        m.pool, m.depth = outer, 0
        inner = keras.Model(b, inside[-2:] if len(inside) > 2 and m.chance(0.3) else inside[-1])
    made = keras.tree.flatten(inner(x))
    return made if m.chance(0.6) else made + keras.tree.flatten(inner(m.mate(x)))


class AllZeroError(Exception):
    """A model whose outputs are all zero says nothing."""


def check_model(model: keras.Model, seed: int) -> dict:
    """Checks the equations on one model and a random selection; returns what was found out about it."""
    graph = keras_pcp.build_graph(model)
    assert all(f.reason for f in graph.frozen)
    exact = all(group.exact for group in graph)
    selection, x = random_selection(graph, seed), inputs_for(model, batch=2)
    before = outputs_of(model, x)
    assert all(np.isfinite(o).all() for o in before), "outputs are not finite"
    if max(np.abs(o).max() for o in before) < 1e-6:
        raise AllZeroError
    with keras_pcp.masked(model, graph, selection):
        masked = outputs_of(model, x)
    pruned = keras_pcp.prune_model(model, graph, selection)
    found = outputs_of(pruned, x)
    assert [o.shape for o in found] == [o.shape for o in before]
    if exact:
        assert_close(found, masked)
    predicted, counted = keras_pcp.count_cost(graph, selection), keras_pcp.count_cost(pruned)
    assert predicted == counted, f"predicted {predicted}, counted {counted}"
    assert counted.params == pruned.count_params()
    for small, full in zip(pruned.weights, model.weights, strict=True):
        assert len(small.shape) == len(full.shape), full.path
        assert np.isin(small.numpy(), full.numpy()).all(), full.path
    if seed % 3 == 0:
        check_twice(model, graph, selection, pruned, x)
    if seed % 3 == 1:
        check_saved(pruned, x, found)
    if seed % 3 == 2 and exact:
        assert_close(outputs_of(keras_pcp.widen_model(pruned, model, graph, selection), x), masked)
    shrink(model, graph, selection)
    for a, b in zip(model.get_weights(), pruned.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert_close(outputs_of(model, x), found, 0)
    free = sum(g.num_channels for g in graph)
    total = free + sum(f.num_channels for f in graph.frozen if f.reason != "output of the model")
    return {"exact": exact, "groups": len(graph), "pruned_share": free / max(total, 1)}


def check_twice(model, graph, selection, pruned, x) -> None:
    """Prunes the pruned model again. A group of one channel may look otherwise then, as an axis of extent 1."""
    between = keras_pcp.build_graph(pruned)
    left = {n: int(m.sum()) for n, m in selection.keep.items()}
    sizes = {g.name: g.num_channels for g in between}
    assert all(sizes.get(n) == size for n, size in left.items() if size > 1), (sizes, left)
    keep = random_selection(between, 1).keep
    second = keras_pcp.Selection({n: m for n, m in keep.items() if left.get(n, 0) > 1})
    twice = keras_pcp.prune_model(pruned, between, second)
    once = keras_pcp.prune_model(model, graph, selection.then(second))
    for a, b in zip(twice.get_weights(), once.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert_close(outputs_of(twice, x), outputs_of(once, x), 0)


def check_saved(pruned, x, expected) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pruned.save(Path(folder) / "model.keras")
        loaded = keras.models.load_model(Path(folder) / "model.keras")
    assert_close(outputs_of(loaded, x), expected, 0)


def check_seed(seed: int) -> dict:
    """Builds the model of a seed and checks it; another one if it computes nothing but zeros."""
    keras.backend.clear_session()
    try:
        return check_model(random_model(seed), seed)
    except AllZeroError:
        return check_seed(seed + 10**6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0)
    args = parser.parse_args()
    start, results, failed = time.perf_counter(), [], []
    for done, seed in enumerate(range(args.start, args.start + args.count), 1):
        try:
            results.append(check_seed(seed))
        except Exception as error:
            failed.append(seed)
            line = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(line.filename).name}:{line.lineno}: {line.line}"
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:600]} ({where})", flush=True)
        if done % 100 == 0:
            print(f"{done} of {args.count}, {len(failed)} failed", flush=True)

    def mean(key: str) -> float:
        return round(sum(r[key] for r in results) / max(len(results), 1), 3)

    summary = {
        "suite": "random_graphs",
        "count": args.count,
        "start": args.start,
        "passed": len(results),
        "exact": sum(r["exact"] for r in results),
        "groups": mean("groups"),
        "pruned_share": mean("pruned_share"),
        "failed": failed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(summary))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

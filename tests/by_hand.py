"""Graphs and models that are small enough to work numbers out by hand."""

import keras
import numpy as np

import keras_pcp
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import ChannelGroup, CostTerm, Extent, WeightInfo
from keras_pcp.repair import least_squares
from keras_pcp.statistics import contributions
from keras_pcp.statistics import layer_inputs as patches_module
from keras_pcp.strategies.rounds import Evaluation

L = keras.layers


def group(name, n):
    return ChannelGroup(name, n, ())


def graph_of(*groups, factors=None):
    """A graph in which every channel of group i costs factors[i] MACs, and as many parameters."""
    terms, weights = [], []
    for g, factor in zip(groups, factors or [1] * len(groups), strict=True):
        extent = Extent(g.num_channels, ((g.name, np.arange(g.num_channels)),))
        terms.append(CostTerm(g.name, factor, (extent,)))
        weights.append(WeightInfo(g.name, g.name, 4, (extent, Extent(factor))))
    return ChannelGraph("m", {g.name: g for g in groups}, (), tuple(weights), (), tuple(terms))


class Oracle:
    """An observation in which removing a channel of group g costs known amounts, with noise from chunk to chunk.

    The noise belongs to a chunk and a group, so that it is the same in every round, as with real samples.
    """

    CHUNKS = 64

    def __init__(self, graph, drops, losses=None, noise=0.0):
        self.graph, self.drops, self.losses = graph, drops, losses or dict.fromkeys(drops, 0.0)
        self.asked, self.spent = [], 0.0
        self.criteria, self.seed, self.draw, self.step, self.moment, self.target = ["first"], 4, 0, 0, 0, 1.0
        rng = np.random.default_rng(0)
        self.noise = {n: noise * d * rng.normal(size=self.CHUNKS) for n, d in drops.items()}
        self.parts = [slice(i, i + 8) for i in range(0, self.CHUNKS, 8)]

    def scores(self, criterion="first"):
        return {n: np.arange(len(m), dtype=float) for n, m in self.kept.keep.items()}

    def chunks(self, selection):
        removed = {n: int((~m).sum()) for n, m in selection.keep.items()}
        metric = 1 - sum((self.drops[n] + self.noise[n]) * k for n, k in removed.items())
        loss = sum(self.losses[n] * k for n, k in removed.items())
        return np.stack(np.broadcast_arrays(metric * np.ones(self.CHUNKS), loss), axis=1)

    def evaluate(self, selection):
        self.asked.append(selection)
        self.spent += 1
        return Evaluation(*self.chunks(selection).mean(axis=0))

    def compare(self, selections, part):
        self.spent += (1 + len(selections)) * (part.stop - part.start) / self.CHUNKS
        before = self.chunks(self.kept)[part]
        return before, {k: (self.chunks(s)[part] - before) * [-1, 1] for k, s in selections.items()}


def one_group(channels, readers=1, seed=0):
    """Two dense layers, and the contributions worked out by hand."""
    rng = np.random.default_rng(seed)
    i = keras.Input((5,))
    hidden = L.Dense(channels, activation="relu", name="hidden")(i)
    model = keras.Model(i, [L.Dense(3, name=f"out{k}")(hidden) for k in range(readers)])
    for w in model.weights:
        w.assign(rng.normal(size=w.shape))
    x = rng.normal(size=(12, 5)).astype("float32")
    values = np.maximum(x @ model.get_layer("hidden").kernel.numpy() + model.get_layer("hidden").bias.numpy(), 0)
    kernels = [model.get_layer(f"out{k}").kernel.numpy() for k in range(readers)]
    added = np.array([[values[:, c, None] * k[c] for k in kernels] for c in range(channels)]).reshape(channels, -1)
    return model, keras_pcp.build_graph(model), (x, np.zeros(12)), added.astype(float)


def all_positions(monkeypatch):
    """Looks at every output position instead of a few."""
    for module in (contributions, patches_module, least_squares):
        monkeypatch.setattr(module, "POSITIONS", 10**6)


def chain():
    i = keras.Input((4, 4, 2))
    x = L.BatchNormalization(name="bn")(L.Conv2D(5, 3, name="conv")(i))
    return keras.Model(i, L.Dense(3, name="head")(L.Flatten()(x)))


def features_model():
    i = keras.Input((5, 4, 2))
    x = L.ReLU(name="first_relu")(L.BatchNormalization()(L.Conv2D(6, 3, padding="same", name="first")(i)))
    y = L.Conv2D(3, 1, activation="relu", name="second")(L.MaxPooling2D()(x))
    model = keras.Model(i, L.Dense(2)(L.Concatenate()([L.Flatten()(y), L.GlobalAveragePooling2D()(x)])))
    rng = np.random.default_rng(0)
    maps = {n: keras.Model(i, model.get_layer(layer).output) for n, layer in (("first", "first_relu"), ("second",) * 2)}
    x = rng.normal(size=(7, 5, 4, 2))
    return model, keras_pcp.build_graph(model), (x, np.zeros((7, 2))), {n: m(x).numpy() for n, m in maps.items()}


def unequal():
    """A group whose channels differ in what they cost: the first four are read four times, and one of these is frozen.

    The least cost is 2 * 8 + 5 * 50 = 266, with the best channel it is 2 * 8 + 8 * 50 = 416.
    """
    x = keras.Input((8,))
    h = L.Dense(16, name="h")(x)
    model = keras.Model(x, L.Dense(50)(L.Concatenate()([h, h[:, :4], h[:, :4], h[:, :4]])))
    model.compile(loss="mse")
    kernel = model.get_layer("h").kernel
    kernel.assign(np.ones(kernel.shape) * np.arange(16, 0, -1.0))  # and those have the highest scores
    return model

"""Blocks are opened without a trace: whatever is asked about a model, it stays exactly as it was."""

import gc

import keras
import numpy as np
import pytest
from custom_blocks import ConvBlock, TwoBlocks
from keras import ops
from zoo import random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.delivered import delivered_graph
from keras_pcp.graph.program import program_of
from keras_pcp.statistics.statistics import Statistics
from keras_pcp.support import internals
from keras_pcp.surgery.copies import copy_model
from keras_pcp.surgery.in_place import check_live

L = keras.layers
ACTIVATION = L.ReLU(name="shared_activation")  # belongs to no layer, so Keras does not list it


class Upsample(L.Layer):
    """A block without weights, which calls layers of its own and one that Keras does not know of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pad = L.ZeroPadding2D(name="conv")  # a name that layers of other blocks have

    def call(self, x):
        ACTIVATION(x)  # leads to nothing
        return ops.reshape(ACTIVATION(self.pad(x)), (-1, x.shape[1] + 2, x.shape[2] + 2, x.shape[3]))


class Counting(L.Layer):
    """A block that stays closed, found out after its inner layers were called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.calls, self.seen = L.Conv2D(5, 1, name="conv"), 0, {}

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        self.calls += 1
        self.seen[self.calls] = 1
        return ACTIVATION(self.conv(x))


class Failing(L.Layer):
    """A block that raises an error after some calls."""

    error, left = None, 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(5, 1, name="conv")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        y = self.conv(x)
        Failing.left -= 1
        if Failing.error is not None and Failing.left < 0:
            raise Failing.error("on purpose")
        return ACTIVATION(y)


class Net(keras.Model):
    """Is saved by the arguments of its constructor."""

    def __init__(self, width, **kwargs):
        i = keras.Input((None, None, 5))
        super().__init__(i, ConvBlock(width, name="inner")(L.Conv2D(width, 1, name="stem")(i)), **kwargs)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}


@keras.saving.register_keras_serializable("tests")
def swish(t):
    return ACTIVATION(t) * ops.sigmoid(1.5 * t)


def rich_model():
    """Nested blocks, equal names, a block without weights, one that stays closed, a model saved by its constructor."""
    keras.utils.set_random_seed(0)
    i = keras.Input((6, 6, 3))
    x = ConvBlock(4, name="one")(i)
    x = L.Conv2D(4, 1, name="conv")(x)
    x = TwoBlocks(4, name="two")(x)
    x = L.BatchNormalization(name="bn")(Upsample(name="up")(x))
    x = Counting(name="counting")(x)
    x = L.Activation(swish, name="swish")(Net(5, name="net")(x))
    model = keras.Model(i, L.Dense(2, name="logits")(L.GlobalAveragePooling2D()(x)), name="rich")
    model.compile("sgd", "mse")
    return model


def layers_in(model):
    found = {id(layer): layer for layer in (model, ACTIVATION, *internals.layers_of(model))}
    for operation in (call.operation for call in program_of(model, opening=False).trace.calls):
        found.setdefault(id(operation), operation)
    found.pop(id(None), None)
    return list(found.values())


def state(model):
    """All that could tell that something was done to a model."""
    layers = layers_in(model)
    return {
        "names": [layer.name for layer in layers],
        "nodes": [[[id(n) for n in nodes] for nodes in internals.remembered(layer)] for layer in layers],
        "attributes": [{k: v for k, v in vars(layer).items() if plain(k, v)} for layer in layers],
        "config": model.get_config(),
        "paths": [w.path for w in model.variables],
        "trained": [id(w) for w in model.trainable_variables],
        "values": [w.numpy().tobytes() for w in model.variables],
    }


def plain(name, value):
    """Leaves out what TensorFlow notes, and what a layer notes whenever the model is run."""
    return isinstance(value, bool | int | float | str | type(None)) and not name.startswith(("_self_", "calls"))


def half(graph):
    return random_selection(graph, 0)


DATA = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32"), np.zeros((8, 2), "float32")
GRAPH = {"on_unknown": "freeze"}


def masked(model, graph):
    with keras_pcp.masked(model, graph, half(graph)):
        pass


def refit(model, graph):
    pruned = keras_pcp.prune_model(model, graph, half(graph))
    keras_pcp.refit(model, pruned, graph, half(graph), DATA[0])


def widen(model, graph):
    keras_pcp.widen_model(keras_pcp.prune_model(model, graph, half(graph)), model, graph, half(graph))


def refused(model, graph):
    with pytest.raises(UnsupportedModelError, match="inline_blocks"):
        keras_pcp.shrink(model, graph, half(graph))
    with pytest.raises(UnsupportedModelError, match="inline_blocks"):
        check_live(model)


def raising(model, graph):
    with pytest.raises(UnsupportedModelError, match="'counting'"):
        keras_pcp.build_graph(model)
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        keras_pcp.build_graph(model, frozen_layers="nowhere", **GRAPH)


def statistics(model, graph):
    found = Statistics(model, graph, DATA)
    assert set(found.contributions) == set(found.freed_elements) == set(found.features)


def delivered(model, graph):
    part = keras.Model(model.input, model.output)
    assert set(delivered_graph(model, part, "freeze", ()).groups) == set(graph.groups)


ASKED = {
    "build_graph": lambda model, graph: [keras_pcp.build_graph(model, **GRAPH) for _ in range(10)],
    "count_cost": lambda model, graph: keras_pcp.count_cost(model),
    "score_channels": lambda model, graph: keras_pcp.score_channels(model, graph, "taylor", data=DATA),
    "masked": masked,
    "prune_model": lambda model, graph: keras_pcp.prune_model(model, graph, half(graph)),
    "copy_model": lambda model, graph: copy_model(model),
    "widen_model": widen,
    "refit": refit,
    "shrink": refused,
    "statistics": statistics,
    "delivered": delivered,
    "an error": raising,
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_model_stays_exactly_as_it_was(asked):
    model = rich_model()
    model(DATA[0])
    before = state(model)
    graph = keras_pcp.build_graph(model, **GRAPH)
    assert {"one", "two", "inner", "other", "up", "net"} <= set(graph.blocks)
    assert "counting" not in graph.blocks
    ASKED[asked](model, graph)
    after = state(model)
    for what in before:
        assert after[what] == before[what], what


def test_lists_of_calls_do_not_grow():
    i = keras.Input((6, 6, 3))
    model = keras.Model(i, L.Conv2D(2, 1, name="conv")(Counting()(Upsample()(ConvBlock(4)(i)))))
    before = state(model)["nodes"]
    gc.collect()
    known = sum(type(o).__name__ == "Node" for o in gc.get_objects())
    for _ in range(50):
        program_of(model)
    assert state(model)["nodes"] == before
    gc.collect()
    assert sum(type(o).__name__ == "Node" for o in gc.get_objects()) == known


@pytest.mark.parametrize("asked", [keras_pcp.build_graph, keras_pcp.inline_blocks, copy_model])
def test_an_interrupt_half_way_leaves_nothing_behind(asked):
    i = keras.Input((6, 6, 3))
    x = Failing(name="failing")(L.Conv2D(5, 1, name="conv")(ConvBlock(4, name="one")(i)))
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    before = state(model)
    for Failing.left in range(3):
        Failing.error = KeyboardInterrupt
        try:
            with pytest.raises(KeyboardInterrupt):
                asked(model)
        finally:
            Failing.error = None
        after = state(model)
        for what in before:
            assert after[what] == before[what], what


def test_names_are_those_of_the_plain_model():
    model = rich_model()
    program = program_of(model)
    names = [program.name_of(op) for op in program.trace.operations]
    own = {id(op): op.name for op in program.trace.operations}
    graph = keras_pcp.build_graph(model, **GRAPH)
    plain_model = keras_pcp.inline_blocks(model)
    assert len(set(names)) == len(names)
    assert {"conv", "one_conv", "inner_conv", "other_conv"} <= set(names)
    renamed = [op for op in program_of(plain_model).trace.operations if own.get(id(op), op.name) != op.name]
    assert len(renamed) > 5
    assert all(program.name_of(op) == op.name for op in renamed)
    again = keras_pcp.build_graph(plain_model, **GRAPH)
    assert list(graph.groups) == list(again.groups)
    assert {w.path: w.layer for w in graph.weights} == {w.path: w.layer for w in again.weights}


def test_a_frozen_model_does_not_freeze_layers_that_were_thawed():
    model = rich_model()
    model.trainable = False
    model.get_layer("conv").trainable = True
    before = state(model)
    keras_pcp.build_graph(model, **GRAPH)
    plain_model = keras_pcp.inline_blocks(model)
    assert model.get_layer("conv").trainable
    assert not plain_model.trainable_variables
    assert state(model)["trained"] == before["trained"]

"""Random calls of the public functions, with right and wrong arguments mixed at random.

Each call has to return or to raise a documented error, and must leave the models that it was given as they were: weights,
config, optimizer slots and metrics. What is meant to change a model may do so if it returns.

    python tests/fuzz_calls.py --count 10000              # seeds 0 to 9999
    python tests/fuzz_calls.py --start 4000 --count 100   # goes on from there; --start N --count 1 repeats one call

An error that a callable given by the caller raises passes through as it is; here that is `OwnError`.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf

import keras_pcp
from keras_pcp import criteria, schedules
from keras_pcp.graph import rules

L = keras.layers
PACKAGE = Path(keras_pcp.__file__).parent
SAMPLES = 24
SLOW = ("taylor", "taylor_gate", "group_fisher", "obd", "mean_activation", "apoz", "hrank", "chip", "lasso", "thinet")
OFTEN, SELDOM = 0.12, 0.05


class OwnError(Exception):
    """What the callables of the caller raise."""


class Block(L.Layer):
    """A layer that hides layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = L.Dense(4, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return keras.ops.relu(self.inner(x))


def _dense() -> keras.Model:
    x = keras.Input((4,))
    y = L.Dense(6, activation="relu", name="hidden")(x)
    return keras.Model(x, L.Dense(3, name="out")(L.Dense(5, activation="relu", name="second")(y)), name="dense")


def _conv() -> keras.Model:
    x = keras.Input((5, 5, 1))
    y = L.ReLU()(L.BatchNormalization(name="bn")(L.Conv2D(4, 3, padding="same", name="stem")(x)))
    y = L.Add()([y, L.Conv2D(4, 3, padding="same", name="branch")(y)])
    return keras.Model(x, L.Dense(3, name="out")(L.GlobalAveragePooling2D()(y)), name="conv")


def _two() -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    y = L.Concatenate()([L.Dense(4, activation="relu", name="left")(a), L.Dense(3, name="right")(b)])
    return keras.Model({"a": a, "b": b}, {"c": L.Dense(3, name="c")(y), "d": L.Dense(1, name="d")(y)}, name="two")


def _block() -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(x, L.Dense(3, name="out")(Block(name="block")(L.Dense(5, name="hidden")(x))), name="block")


def _bare() -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(x, L.Dense(3, name="out")(x), name="bare")


def _free() -> keras.Model:
    x = keras.Input((None, None, 1))
    y = L.GlobalMaxPooling2D()(L.Conv2D(4, 3, activation="relu", name="stem")(x))
    return keras.Model(x, L.Dense(3, name="out")(y), name="free")


BUILDERS = {"dense": _dense, "conv": _conv, "two": _two, "block": _block, "bare": _bare, "free": _free}


@dataclass
class Subject:
    """A model, compiled and trained for a step, with all that is right for it."""

    name: str
    model: keras.Model = None
    graph: Any = None
    x: Any = None
    y: Any = None
    state: list = field(default_factory=list)
    seen: str = ""

    def make(self) -> "Subject":
        keras.utils.set_random_seed(1)
        rng = np.random.default_rng(0)
        self.model = model = BUILDERS[self.name]()
        shapes = keras.tree.map_structure(
            lambda t: (SAMPLES, *(5 if d is None else d for d in t.shape[1:])), model.input
        )
        self.x = (
            {k: rng.normal(size=v).astype("float32") for k, v in shapes.items()}
            if self.name == "two"
            else (rng.normal(size=shapes).astype("float32"))
        )
        classes = np.arange(SAMPLES) % 3
        self.y = {"c": classes, "d": rng.normal(size=(SAMPLES, 1))} if self.name == "two" else classes
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if self.name == "two":
            model.compile("adam", {"c": loss, "d": "mse"}, metrics={"c": ["accuracy"], "d": ["mae"]}, run_eagerly=True)
        else:
            optimizer = keras.optimizers.SGD(0.01, momentum=0.9) if self.name == "conv" else "adam"
            model.compile(optimizer, loss, metrics=["accuracy"], run_eagerly=True)
        model.train_on_batch(self.x, self.y)
        self.graph = keras_pcp.build_graph(model, on_unknown="freeze")
        self.keep()
        return self

    def variables(self) -> list:
        return [*self.model.weights, *self.model.optimizer.variables, *self.model.metrics_variables]

    def keep(self) -> None:
        self.state, self.seen = [v.numpy() for v in self.variables()], self.look()

    def restore(self) -> None:
        for variable, value in zip(self.variables(), self.state, strict=True):
            variable.assign(value)

    def look(self) -> str:
        """Returns a digest of all that must not change."""
        model, digest = self.model, hashlib.sha256()
        for v in self.variables():
            digest.update(f"{id(v)} {v.shape} {v.dtype}".encode())
            digest.update(np.ascontiguousarray(v.numpy()).tobytes())
        digest.update(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
        flags = [(layer.trainable, getattr(layer, "momentum", None)) for layer in model.layers]
        digest.update(repr((flags, "compute_loss" in vars(model), model.stop_training)).encode())
        return digest.hexdigest()


class World:
    """All models, made once; those that were changed are made again."""

    def __init__(self):
        self.subjects = {name: Subject(name).make() for name in BUILDERS}
        x = keras.Input((4,))
        self.others = [
            keras.Sequential([L.Dense(3)]),  # without an input
            keras.Model(x, L.Dense(3)(L.Dense(6, name="hidden")(x))),  # not compiled
            keras.Sequential([L.Dense(3)]).build,  # a bound method
            keras.Model(),
        ]

    def changed(self) -> list[str]:
        return [name for name, subject in self.subjects.items() if subject.look() != subject.seen]


class Draw:
    """Draws arguments for one call on one model."""

    def __init__(self, rng: random.Random, world: World):
        self.rng, self.world = rng, world
        self.subject = world.subjects[rng.choice(sorted(world.subjects))]
        self.shown: list[str] = []

    def arg(self, value: Callable[[], Any], share: float = OFTEN) -> Any:
        """Returns a right value, or now and then any other."""
        found = self.junk() if self.rng.random() < share else value()
        self.shown.append(shown(found))
        return found

    def options(self, **values: Callable[[], Any]) -> dict[str, Any]:
        return {name: self.arg(value) for name, value in values.items() if self.rng.random() < 0.4}

    def one(self, *values: Any) -> Any:
        return self.rng.choice(values)

    def numpy(self) -> np.random.Generator:
        return np.random.default_rng(self.rng.randrange(2**32))

    def model(self) -> Any:
        return self.arg(lambda: self.subject.model, SELDOM)

    def graph(self) -> Any:
        return self.arg(lambda: self.other().graph if self.rng.random() < SELDOM else self.subject.graph, SELDOM)

    def other(self) -> Subject:
        return self.world.subjects[self.rng.choice(sorted(self.world.subjects))]

    def junk(self) -> Any:
        number = self.rng.random() < 0.4
        simple = [
            None,
            True,
            False,
            0,
            -1,
            1,
            2,
            3,
            7,
            10**30,
            0.0,
            0.5,
            1.0,
            -0.5,
            2.5,
            float("nan"),
            float("inf"),
            -float("inf"),
            1j,
            np.int64(2),
            np.float32(0.5),
            np.float64(0.25),
            np.bool_(True),
            np.array(2),
            1e-300,
            10**400,
        ]
        if number:
            return self.rng.choice(simple)
        rng = self.numpy()
        return self.rng.choice(
            [
                lambda: "",
                lambda: "l1",
                lambda: "abc",
                lambda: "hidden",
                lambda: b"x",
                dict,
                list,
                lambda: (),
                lambda: {"hidden": 1},
                lambda: {"hidden": np.array([True, False] * 3)},
                lambda: {1: 2},
                lambda: [1, 2],
                lambda: ["l1", 3],
                lambda: [None],
                lambda: {"stem": None},
                lambda: rng.normal(size=(3, 4)),
                lambda: np.arange(6),
                lambda: np.array(["a", None], object),
                lambda: np.array([]),
                lambda: object(),
                lambda: (i for i in range(3)),
                lambda: lambda: 3,
                raising,
                lambda: dict,
                lambda: keras.layers.Dense,
                lambda: L.Dense(2),
                lambda: self.subject.model,
                lambda: self.other().model,
                lambda: self.subject.graph,
                lambda: self.other().graph,
                lambda: self.selection(self.other()),
                lambda: self.rng.choice(self.world.others),
                lambda: keras_pcp.strategies.Progressive(),
                lambda: keras_pcp.strategies.Progressive,
                lambda: schedules.cubic,
                lambda: schedules,
                lambda: range(3),
                lambda: {1, 2},
                lambda: np.dtype("int8"),
                lambda: Path("/nowhere"),
                lambda: tf.data.Dataset.range(3),
                lambda: tf.ones((2, 2)),
                lambda: Ellipsis,
                lambda: raising,
                lambda: keras_pcp.Distillation,
                lambda: memoryview(b"ab"),
                lambda: self.scores(),
                lambda: [[1, 2], [3]],
                lambda: ([[1, 2], [3]], [1]),
                lambda: keras.optimizers.SGD(),
            ]
        )()

    def selection(self, subject: Subject | None = None) -> keras_pcp.Selection:
        graph, rng = (subject or self.subject).graph, self.numpy()
        kind = self.rng.random()
        keep = {}
        for group in graph:
            mask = rng.random(group.num_channels) < 0.7
            if kind > 0.15:
                mask[rng.integers(group.num_channels)] = True
            if kind < 0.05:
                mask = mask[:-1]
            if kind < 0.9:
                keep[group.name] = mask
        if 0.05 < kind < 0.08:
            keep["nobody"] = np.ones(3, bool)
        return keras_pcp.Selection(keep)

    def a_selection(self) -> Any:
        return self.arg(self.selection, SELDOM)

    def scores(self) -> dict:
        rng, kind = self.numpy(), self.rng.random()
        found = {g.name: rng.normal(size=g.num_channels) for g in self.subject.graph}
        if found and kind < 0.2:
            name = next(iter(found))
            right = found[name]
            found[name] = self.one(
                right * np.nan,
                right * np.inf,
                right[:-1],
                right.tolist(),
                right.astype(complex),
                right.astype("float16"),
                np.array(["a"] * len(right)),
                None,
                3,
                right[None],
                right.astype(object),
                right.astype(int),
                right * 0,
            )
        return found

    def criterion(self) -> Any:
        def nans(group, statistics):
            return np.full(group.num_channels, np.nan)

        def short(group, statistics):
            return np.ones(group.num_channels + 1)

        fast = ["l1", "l2", "fpgm", "cosine", "least_distance", "random", "bn_scale", "orthogonality", "reciprocal"]
        slow = [
            "taylor",
            "taylor_gate",
            "group_fisher",
            "obd",
            "mean_activation",
            "apoz",
            "hrank",
            "chip",
            "lasso",
            "thinet",
        ]
        return self.rng.choice(
            [
                *fast,
                *fast,
                *fast,
                self.rng.choice(slow),
                criteria.l1,
                nans,
                short,
                lambda group: 1,
                lambda g, s: "a",
                lambda g, s: None,
                raising,
                criteria.Chip(2),
                "nobody",
                lambda g, s: [[1], [2, 3]],
                lambda g, s: np.ones(g.num_channels, complex),
                lambda g, s: [1] * g.num_channels,
            ]
        )

    def data(self) -> Any:
        """Draws samples that fit the subject, or not."""
        x, y, rng = self.subject.x, self.subject.y, self.numpy()
        if self.rng.random() < 0.4:
            return x, y
        tree, make = keras.tree, tf.data.Dataset.from_tensor_slices

        def each(function):
            return tree.map_structure(function, x), y

        def poisoned(value):
            copies = tree.map_structure(np.copy, x)
            tree.flatten(copies)[0].flat[rng.integers(4)] = value
            return copies, y

        uneven = {"c": np.ones(SAMPLES), "d": np.zeros(SAMPLES)} if self.subject.name == "two" else rng.random(SAMPLES)
        silent = {"c": np.zeros(SAMPLES), "d": np.zeros(SAMPLES)}
        first = tree.flatten(x)[0]
        return self.one(
            # Right, or nearly.
            lambda: (x, y, uneven),
            lambda: (x, y, None),
            lambda: [x, y],
            lambda: make((x, y)).batch(8),
            lambda: make((x, y, uneven)).batch(5),
            lambda: iter([(x, y)]),
            lambda: (b for b in [(x, y), (x, y)]),
            lambda: x,
            lambda: each(lambda a: a.astype("float64")),
            lambda: each(lambda a: a.astype(int)),
            lambda: each(tf.constant),
            lambda: each(lambda a: a[..., None]),
            lambda: (x, y, -np.ones(SAMPLES)),
            lambda: (first, y),
            lambda: first,
            # Datasets that are not what they should be.
            lambda: make((x, y)),
            lambda: make({"x": x, "y": y}).batch(4),
            lambda: make((x, y)).batch(8).take(0),
            lambda: make(x).batch(4),
            lambda: lambda: (x, y),
            lambda: raising,
            raising_items,
            lambda: tf.data.Dataset.from_generator(raising, output_signature=tf.TensorSpec(())),
            lambda: [(x, y), (x, y)],
            lambda: iter([(x, y), (first[:, :-1], y)]),
            lambda: make((x, y)).batch(4).repeat(),
            # Inputs that do not fit.
            lambda: each(lambda a: a[:, :-1]),
            lambda: each(lambda a: a[0]),
            lambda: each(lambda a: a.astype(object)),
            lambda: each(lambda a: a.astype(str)),
            lambda: each(lambda a: a.tolist()),
            lambda: each(lambda a: a[:0]),
            lambda: each(lambda a: a[:7]),
            lambda: each(lambda a: a * 0 + 3j),
            lambda: poisoned(np.nan),
            lambda: poisoned(np.inf),
            lambda: poisoned(1e38),
            lambda: ({"wrong": x}, y),
            lambda: ([x, x], y),
            lambda: self.other().x,
            lambda: (self.other().x, self.other().y),
            # Labels and weights that do not fit.
            lambda: (x, tree.map_structure(lambda a: a[:3], y)),
            lambda: (x, np.full(SAMPLES, 99)),
            lambda: (x, None),
            lambda: (x, np.full(SAMPLES, np.nan)),
            lambda: (x, np.eye(3)[np.arange(SAMPLES) % 3]),
            lambda: (x, np.array(["a"] * SAMPLES)),
            lambda: (x, y, np.zeros(SAMPLES)),
            lambda: (x, y, np.ones(3)),
            lambda: (x, y, np.full(SAMPLES, np.nan)),
            lambda: (x, y, silent),
            lambda: (x, y, "a"),
            lambda: (x, y, x, y),
            lambda: (x,),
            lambda: (3, 4),
            lambda: ("a", "b"),
            lambda: (x, 3),
            lambda: [x, x, x],
        )()

    def frozen(self) -> Any:
        return self.one((), ["out"], "out", ("hidden",), ["stem"], ["nobody"], {"out"}, [3], ["out", None])

    def limits(self) -> dict:
        def limit():
            return self.one(0.5, 0.7, 0.9, 0.95, 0.3, 100, 50, np.float32(0.5), np.int64(60), 10**9, 0.001)

        names = self.rng.sample(["max_macs", "max_params", "max_bytes"], self.one(0, 1, 1, 1, 1, 2))
        return {name: self.arg(limit, SELDOM) for name in names}

    def widths(self) -> Any:
        return self.one(1, 2, 4, {"hidden": 2}, {"stem": 3}, {"nobody": 2}, np.int64(2), {}, {"hidden": "a"})

    def strategy(self) -> Any:
        kind = self.one(
            *[keras_pcp.strategies.Progressive] * 4,
            keras_pcp.strategies.OneShot,
            keras_pcp.strategies.RandomWidths,
            keras_pcp.strategies.LayerByLayer,
            keras_pcp.strategies.SoftFilterPruning,
            keras_pcp.strategies.Chex,
            *[keras_pcp.strategies.Adaptive] * 2,
        )
        options = {}
        if kind is keras_pcp.strategies.Progressive:
            options |= {
                "step": lambda: self.one(0.05, 0.2, 1, 2, np.int64(1)),
                "groups_per_round": lambda: self.one(None, 1, 2),
                "select": lambda: self.one("topk", "threshold", "joint"),
                "max_drop": lambda: self.one(0.0, 0.1, 1),
                "min_channels": self.widths,
                "multiple_of": self.widths,
                "attempts": lambda: self.one("fast", "exact"),
                "confidence": lambda: self.one(0, 1.0, 3),
            }
        if kind is keras_pcp.strategies.OneShot:
            options["scope"] = lambda: self.one("local", "global")
        if kind is keras_pcp.strategies.RandomWidths:
            options["draws"] = lambda: self.one(1, 2)
        if kind is keras_pcp.strategies.Adaptive:
            options |= {
                "rates": lambda: self.one("effective_rank", "global", "local", "threshold"),
                "patience": lambda: self.one(0, 1, 5, np.int64(2)),
                "protection": lambda: self.one(0.0, 1.0, 1, np.float32(3)),
                "correct": lambda: self.one(True, False),
                "moments": lambda: self.one(1, 2, 20, np.int64(3)),
            }
        return kind(**self.options(**options))

    def measuring(self) -> Any:
        options = {
            "samples": lambda: self.one(16, None, np.int64(8)),
            "monitor": lambda: self.one(None, None, "loss", "nobody", {"loss": 1.0}),
            "reestimate_batch_norm": lambda: self.one(True, False),
            "seed": lambda: self.one(0, 1, np.int64(2)),
        }
        return keras_pcp.Measuring(**self.options(**options))

    def a_strategy(self) -> Any:
        with contextlib.suppress(keras_pcp.PruningError):
            return self.strategy()
        return None


def raising(*args: Any, **kwargs: Any) -> Any:
    raise OwnError("from a callable of the caller")


def raising_items():
    yield from ()
    raise OwnError("from a generator of the caller")


def shown(value: Any) -> str:
    with contextlib.suppress(Exception):
        return f"{type(value).__name__} {' '.join(repr(value).split())[:100]}"
    return type(value).__name__


# One function for each kind of call. What it returns is not looked at.


def build_graph(d: Draw) -> None:
    keras_pcp.build_graph(d.model(), **d.options(on_unknown=lambda: d.one("error", "freeze"), frozen_layers=d.frozen))


def graph_things(d: Draw) -> None:
    d.one(
        lambda: str(keras_pcp.inspect_graph(d.graph())),
        lambda: d.subject.graph[d.arg(lambda: "hidden", 0.5)],
        lambda: keras_pcp.inline_blocks(d.model()),
        lambda: keras_pcp.count_cost(d.one(d.model, d.graph)(), **d.options(selection=d.selection)),
        lambda: keras_pcp.schedules.linear(d.arg(lambda: 0.5, 0.5)),
        lambda: keras_pcp.schedules.cubic(d.arg(lambda: 0.5, 0.5)),
        lambda: keras_pcp.measure_latency(d.arg(lambda: "/nowhere/x"), **d.options(runs=lambda: 2, threads=lambda: 1)),
    )()


def selections(d: Draw) -> None:
    def masks():
        return d.one(
            {"a": np.array([True, False])},
            {},
            {"a": [True, False]},
            {"a": [1, 0]},
            {"a": (False,)},
            {3: [True]},
            {"a": np.array([])},
            {"a": None},
            {"a": "ab"},
            {"a": [[True]]},
            {"a": [True, None]},
        )

    def entries():
        return d.one(
            {"a": {"channels": 3, "removed": [1]}},
            {"a": {"channels": 3, "removed": [5]}},
            {"a": {}},
            {"a": 3},
            {"a": {"channels": "x", "removed": []}},
            {"a": {"channels": 3, "removed": "x"}},
            {"a": {"channels": -3, "removed": []}},
            {"a": {"channels": 3, "removed": [-1]}},
        )

    d.one(
        lambda: keras_pcp.Selection(d.arg(masks, 0.2)),
        lambda: keras_pcp.Selection.from_json(d.arg(entries, 0.2)).to_json(),
        lambda: d.selection().then(d.a_selection()),
        lambda: d.selection().after(d.a_selection()),
        lambda: d.selection() == d.a_selection(),
    )()


def score_channels(d: Draw) -> None:
    options = {"criterion": d.criterion, "data": d.data, "seed": lambda: d.one(0, 1, np.int64(3))}
    keras_pcp.score_channels(d.model(), d.graph(), **d.options(**options))


def score_on_data(d: Draw) -> None:
    slow = [
        "taylor",
        "group_fisher",
        "obd",
        "mean_activation",
        "apoz",
        "hrank",
        "chip",
        "lasso",
        "thinet",
        criteria.Chip(2),
    ]
    keras_pcp.score_channels(d.subject.model, d.subject.graph, d.one(*slow), data=d.arg(d.data))


def select_by_ratio(d: Draw) -> None:
    options = {"scope": lambda: d.one("local", "global"), "min_channels": d.widths, "multiple_of": d.widths}

    def ratio():
        return d.one(0.5, 0.3, 0, 0.9, np.float32(0.5), {"hidden": 0.5}, {"nobody": 0.5}, {"hidden": "a"})

    keras_pcp.select_by_ratio(d.graph(), d.arg(d.scores), d.arg(ratio), **d.options(**options))


def select_by_cost(d: Draw) -> None:
    options = {"scope": lambda: d.one("local", "global"), "min_channels": d.widths, "multiple_of": d.widths}
    keras_pcp.select_by_cost(d.graph(), d.arg(d.scores), **d.limits(), **d.options(**options))


def prune_model(d: Draw) -> None:
    keras_pcp.prune_model(d.model(), d.graph(), d.a_selection())


def widen_model(d: Draw) -> None:
    selection = d.selection()
    small = d.model()
    with contextlib.suppress(keras_pcp.PruningError):
        small = keras_pcp.prune_model(d.subject.model, d.subject.graph, selection)
    keras_pcp.widen_model(d.arg(lambda: small), d.model(), d.graph(), d.arg(lambda: selection))


def masked(d: Draw) -> None:
    with keras_pcp.masked(d.model(), d.graph(), d.a_selection()):
        pass


def shrink(d: Draw) -> str | None:
    model = d.model()
    before = {id(v) for v in d.subject.variables()}
    keras_pcp.shrink(model, d.graph(), d.a_selection())
    assert before == {id(v) for v in d.subject.variables()}
    d.subject.model.train_on_batch(d.subject.x, d.subject.y)
    return "rebuild"


def reestimate_batch_norm(d: Draw) -> str:
    options = {
        "samples": lambda: d.one(8, 24, 100),
        "batch_size": lambda: d.one(4, 8, 100),
        "seed": lambda: d.one(0, 1),
    }
    keras_pcp.reestimate_batch_norm(d.model(), d.arg(d.data), **d.options(**options))
    assert all(np.isfinite(w).all() for w in d.subject.model.get_weights())
    return "restore"


def refit(d: Draw) -> None:
    selection = d.selection()
    small = d.model()
    with contextlib.suppress(keras_pcp.PruningError):
        small = keras_pcp.prune_model(d.subject.model, d.subject.graph, selection)
    options = {
        "samples": lambda: d.one(8, None, 100),
        "ridge": lambda: d.one(0.1, 1, 1e-6),
        "seed": lambda: d.one(0, 1),
    }
    data = d.arg(d.data)
    found = keras_pcp.refit(
        d.model(),
        d.arg(lambda: small, SELDOM),
        d.graph(),
        d.arg(lambda: selection, SELDOM),
        data,
        **d.options(**options),
    )
    assert all(np.isfinite(pair).all() for pair in found.errors.values())


def constructors(d: Draw) -> None:
    pcp, losses = keras_pcp, (keras.losses.MeanSquaredError(), "mse", _distillation().loss if _distillation() else None)
    d.one(
        d.strategy,
        d.strategy,
        lambda: pcp.Distillation(**d.options(weight=lambda: 0.5, loss=lambda: d.one(*losses))),
        lambda: pcp.PseudoLabels(**d.options(threshold=lambda: 0.5, refresh_every=lambda: 2, balanced=lambda: True)),
        lambda: pcp.PseudoLabels(**d.options(true_labels=lambda: np.arange(4), history=list)),
        lambda: pcp.GradientReversal(**d.options(weight=lambda: 0.5)),
        lambda: pcp.adaptation.MeanDiscrepancy(
            **d.options(scales=lambda: d.one((1.0, 2.0), [1], (-1.0,), ("a",), (np.inf,)))
        ),
        lambda: pcp.adaptation.ReversalSchedule(**d.options(maximum=lambda: 1.0, gamma=lambda: 5)),
        lambda: pcp.adaptation.AnnealedLearningRate(
            **d.options(initial=lambda: 0.1, steps=lambda: 5, alpha=lambda: 1, beta=lambda: 1)
        ),
        lambda: criteria.Chip(*d.options(samples=lambda: 3).values()),
        lambda: criteria.TaylorGate(*d.options(batch_size=lambda: 3).values()),
        lambda: criteria.GroupFisher(*d.options(per=lambda: "macs").values()),
        lambda: criteria.get(d.arg(d.criterion)),
    )()


def pruning_options(d: Draw) -> dict:
    return d.limits() | d.options(
        criterion=lambda: d.one(d.criterion(), d.criterion(), ["l1", "l2"], ["l1", 3]),
        strategy=d.a_strategy,
        measuring=d.measuring,
        refit_data=d.data,
        frozen_layers=d.frozen,
        on_unknown=lambda: d.one("error", "freeze"),
    )


def callback(d: Draw) -> Any:
    options = pruning_options(d) | d.options(
        distillation=lambda: d.one(None, _distillation()),
        deliver=lambda: d.one(None, d.subject.model),
        begin=lambda: d.one(0.0, 0.1, 0, 0.9),
        end=lambda: d.one(0.5, 1, 1.0, 0.05),
        schedule=lambda: d.one(
            schedules.linear,
            lambda t: t,
            lambda t: 1,
            lambda t: "a",
            raising,
            lambda: 1,
            lambda t: t - 1,
            lambda t: float("nan") if t < 0.8 else 1.0,
            lambda t: 1 - t,
            lambda t: np.float32(t),
        ),
    )
    if d.rng.random() < 0.7:
        return keras_pcp.ProgressivePruning(validation_data=d.arg(d.data), **options)
    return keras_pcp.AdaptivePruning(**options, **d.options(validation_data=d.data))


def _distillation() -> Any:
    if not hasattr(keras, "distillation"):
        return None
    return keras_pcp.Distillation(0.5, keras.distillation.FeatureDistillation(loss="mse"))


def fit(d: Draw) -> str:
    callbacks = [callback(d)]
    model, before = d.subject.model, int(d.subject.model.optimizer.iterations)
    metrics = [v.numpy() for v in model.metrics_variables]
    try:
        model.fit(d.subject.x, d.subject.y, batch_size=4, epochs=d.one(1, 2), verbose=0, callbacks=callbacks)
    except Exception:
        if int(model.optimizer.iterations) == before:
            for variable, value in zip(model.metrics_variables, metrics, strict=True):
                variable.assign(value)  # Keras itself resets them when an epoch begins
            raise
        callbacks[0].on_train_end()
        model.train_on_batch(d.subject.x, d.subject.y)  # still whole
        d.trained = True
        raise
    assert "compute_loss" not in vars(model)
    model.train_on_batch(d.subject.x, d.subject.y)
    return "rebuild"


def search_widths(d: Draw) -> None:
    options = pruning_options(d) | d.options(
        checkpoint=lambda: d.one(None, "/nowhere/at/all.json"), verbose=lambda: False
    )
    keras_pcp.search_widths(d.model(), validation_data=d.arg(d.data), **{"verbose": False, **options})


def supernet(d: Draw) -> None:
    every = {
        "cut_after": d.frozen,
        "ratios": lambda: d.one((0.5,), [0.25, 0.75], np.array([0.5, 1.0])),
        "samples": lambda: d.one(0, 1, 3),
        "distillation_weight": lambda: 0.5,
        "loss": lambda: None,
        "criterion": d.criterion,
        "sampling": lambda: d.one("prefix", "fair"),
        "stage_inputs": lambda: d.one("full", "own"),
        "frozen_layers": d.frozen,
        "on_unknown": lambda: d.one("error", "freeze"),
        "seed": lambda: 3,
    }
    options = d.options(**dict(d.rng.sample(list(every.items()), 3)))
    net = keras_pcp.StagewiseSupernet(d.model(), d.arg(lambda: 1, SELDOM), **options)
    if d.rng.random() < 0.3:
        net.teach(*[d.arg(lambda: 0) for _ in range(d.one(0, 1, 2))])
    searching = d.options(
        samples=lambda: d.one(8, 1000),
        method=lambda: d.one("dynamic", "evolution"),
        evaluations=lambda: d.one(1, 12),
        seed=lambda: 2,
        checkpoint=lambda: d.one(None, "/nowhere/at/all.json"),
    )
    net.search(validation_data=d.arg(d.data), **{"verbose": False, **d.limits(), **searching})


def register_rule(d: Draw) -> None:
    class Custom(L.Layer):
        def call(self, x):
            return 2 * x

    def rule():
        return d.one(
            lambda site: site.inputs[0],
            lambda site: None,
            lambda site: 3,
            lambda site: [site.inputs[0]],
            lambda site: [],
            lambda site: "ab",
            raising,
            lambda: None,
            lambda site: site.inputs[0].ids,
            lambda site: [None, None],
            lambda site: {"a": 1},
            lambda site: (3,),
        )

    registered = dict(rules._LAYER_RULES)
    try:
        keras_pcp.register_rule(*[d.arg(lambda: Custom) for _ in range(d.one(1, 1, 1, 2, 0))])(d.arg(rule))
        x = keras.Input((4,))
        keras_pcp.build_graph(keras.Model(x, L.Dense(2)(Custom(name="custom")(L.Dense(3, name="hidden")(x)))))
    finally:  # a rule of the caller may have been given to a layer of Keras
        rules._LAYER_RULES.clear()
        rules._LAYER_RULES.update(registered)


def dann(d: Draw) -> None:
    x = keras.Input((4,))
    features = keras.Model(x, L.Dense(3, activation="relu")(x))
    heads = [
        d.arg(lambda: L.Dense(2)),
        d.arg(lambda: d.one(L.Dense(1), keras_pcp.adaptation.MeanDiscrepancy(), L.Dense(2))),
    ]
    make = d.one(keras_pcp.adaptation.DANN, keras_pcp.build_dann)
    net = make(d.arg(lambda: features), *heads, **d.options(weight=lambda: d.one(1.0, 0.5)))
    if make is keras_pcp.build_dann:
        return
    compiling = d.options(domain_weight=lambda: 0.5, metrics=lambda: ["accuracy"])
    net.compile("sgd", run_eagerly=True, **compiling)
    rng = d.numpy()
    source = d.arg(lambda: (rng.normal(size=(8, 4)), np.arange(8) % 2), 0.3)
    target = d.arg(lambda: rng.normal(size=(8, 4)), 0.3)
    if d.rng.random() < 0.7:
        options = {
            "target_weight": lambda: 0.5,
            "samples": lambda: d.one(4, None),
            "seed": lambda: 1,
            "pseudo_labels": lambda: keras_pcp.PseudoLabels(0.5),
        }
        net.validation_data(source, target, **d.options(**options))
    else:
        options = {
            "batch_size": lambda: d.one(4, 8),
            "epochs": lambda: 1,
            "seed": lambda: 1,
            "pseudo_weight": lambda: 0.5,
            "pseudo_labels": lambda: keras_pcp.PseudoLabels(0.5),
        }
        options.pop("epochs")  # Keras's own
        net.fit(source, target, verbose=0, **d.options(**options))


# How often each is called.
CALLS = {
    build_graph: 6,
    graph_things: 10,
    selections: 10,
    score_channels: 10,
    score_on_data: 4,
    select_by_ratio: 8,
    select_by_cost: 8,
    prune_model: 3,
    widen_model: 3,
    masked: 4,
    shrink: 4,
    reestimate_batch_norm: 6,
    refit: 5,
    constructors: 12,
    callback: 8,
    fit: 3,
    search_widths: 5,
    supernet: 5,
    register_rule: 5,
    dann: 2,
}


@dataclass(frozen=True)
class Outcome:
    """What came of a call: "returned", the name of a documented error, or what is wrong with it."""

    call: str
    kind: str
    fault: str = ""
    arguments: tuple[str, ...] = ()
    message: str = ""


def one_call(rng: random.Random, world: World, whole: bool = False) -> Outcome:
    """Makes one random call; `whole` looks at all models afterwards, not only at its own."""
    function = rng.choices(list(CALLS), list(CALLS.values()))[0]
    draw, after, kind, fault, message = Draw(rng, world), None, "returned", "", ""
    draw.trained = False
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            after = function(draw)
        except (keras_pcp.PruningError, OwnError) as error:
            kind, message = type(error).__name__, str(error)
        except Exception as error:
            kind = f"undocumented {type(error).__name__}"
            message = str(error)
            if "OwnError" in message:  # TensorFlow wraps what a dataset of the caller raises
                kind = "OwnError"
            else:
                frames = [f for f in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(f.filename).parents]
                where = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
                fault = f"{type(error).__name__}: {' '.join(message.split())[:200]} at {where}"
    subject = draw.subject
    if after == "rebuild" or draw.trained:
        subject.make()
    elif after == "restore":
        subject.restore()
        subject.keep()
    for name in world.changed() if after else []:  # another model may have been given
        world.subjects[name].make()
    names = world.changed() if whole else [subject.name] if subject.look() != subject.seen else []
    if names and not fault:
        fault = f"changed {names} though {kind}"
    for name in names:
        world.subjects[name].make()
    return Outcome(function.__name__, kind, fault, tuple(draw.shown), message)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="number of calls")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--messages", action="store_true", help="print the message of every refusal")
    options = parser.parse_args()
    world, counts, faults = World(), collections.Counter(), 0
    for number in range(options.start, options.start + options.count):
        outcome = one_call(random.Random(number), world, whole=number % 50 == 0)
        counts[outcome.call, outcome.kind] += 1
        if outcome.fault:
            faults += 1
            print(f"seed {number}: {outcome.call}({'; '.join(outcome.arguments)}): {outcome.fault}", flush=True)
        elif options.messages and outcome.message:
            print(f"seed {number}: {outcome.call}({'; '.join(outcome.arguments)}): {outcome.message}", flush=True)
        if (number + 1) % 500 == 0:
            print(f"up to seed {number}: {faults} faults", file=sys.stderr, flush=True)
    for (call, kind), count in sorted(counts.items()):
        print(f"{call:<16} {kind:<40} {count:>6}")
    returned = sum(count for (_, kind), count in counts.items() if kind == "returned")
    row = {"suite": "fuzz_calls", "count": options.count, "start": options.start, "returned": returned}
    print(json.dumps({**row, "refused": options.count - returned - faults, "faults": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

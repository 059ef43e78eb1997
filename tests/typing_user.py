"""A script as a user would write it. `test_types.py` has mypy check it strictly; it is not run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt

import keras_pcp
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.graph.rules import CallSite, Outputs
from keras_pcp.statistics import Statistics
from keras_pcp.strategies import Action, FitLength, Needs, Observation, Problem, Progressive, Strategy, just_enough


class Doubled(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    def call(self, x: Any) -> Any:
        return 2 * x


@keras_pcp.register_rule(Doubled)
def doubled(site: CallSite) -> Outputs:
    return site.inputs[0]


def largest_weight(group: ChannelGroup, statistics: Statistics) -> npt.NDArray[np.float64]:
    score = np.zeros(group.num_channels)
    for s in group.slices_of("produce"):
        values = np.moveaxis(np.abs(statistics.weights[s.weight]), s.axis, 0)[s.positions]
        np.maximum.at(score, s.channels, values.reshape(len(values), -1).max(axis=1))
    return score


def late(progress: float) -> float:
    return progress**2


@dataclass(frozen=True)
class AtOnce(Strategy):
    needs: ClassVar[Needs] = Needs(validation=False)
    at: float = 0.5

    def when(self, problem: Problem, fit: FitLength) -> Sequence[int]:
        return [int(self.at * fit.total)]

    def update(self, problem: Problem, state: None, seen: Observation) -> tuple[None, Action | None]:
        keep = just_enough(problem, seen.scores(), scope="local", min_channels={"conv": 4})
        return state, None if keep == seen.kept else Action(keep, how="hold" if seen.moment else "cut")


def train(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    features = Doubled()(keras.layers.Conv2D(16, 3, activation="relu", name="conv")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(features)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    pruning = keras_pcp.ProgressivePruning(
        strategy=Progressive(step=0.05, select="threshold", attempts="exact", multiple_of=4),
        max_macs=0.5,
        max_params=10_000,
        validation_data=(x[:64], y[:64]),
        criterion=["taylor", largest_weight],
        measuring=keras_pcp.Measuring(samples=None, monitor={"accuracy": 1.0}, mode="max"),
        distillation=keras_pcp.Distillation(0.5),
        on_unknown="freeze",
        schedule=late,
    )
    model.fit(x, y, epochs=4, callbacks=[pruning])
    report = pruning.report
    for done in report.rounds:
        print(done.step, done.how, done.macs, done.before.metric if done.before else None, sum(done.widths.values()))
    before, after = report.widths["conv"]
    print(
        report, report.reached, after / before, report.before["macs"] - report.after["macs"], report.selection.removed()
    )
    model.fit(x, y, callbacks=[keras_pcp.Pruning(AtOnce(), max_bytes=20_000, schedule=keras_pcp.schedules.linear)])
    return model


def prune(model: keras.Model, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> float:
    graph = keras_pcp.build_graph(model, on_unknown="error", frozen_layers=["dense"])
    print(keras_pcp.inspect_graph(graph), [(group.name, group.num_channels) for group in graph])
    scores = keras_pcp.score_channels(model, graph, largest_weight, data=(x, y))
    by_ratio = keras_pcp.select_by_ratio(graph, scores, 0.25, scope="local")
    by_cost = keras_pcp.select_by_cost(graph, scores, max_macs=0.5, scope="global")
    by_hand = keras_pcp.Selection({name: s > np.median(s) for name, s in scores.items()})
    cheapest = min((by_ratio, by_cost, by_hand), key=lambda selection: keras_pcp.count_cost(graph, selection).macs)
    small = keras_pcp.prune_model(model, graph, cheapest)
    refitted = keras_pcp.refit(model, small, graph, cheapest, (x, y), samples=None, ridge=0.1)
    print({layer: after / before for layer, (before, after) in refitted.errors.items()}, refitted.left)
    try:
        file = keras_pcp.export_litert(small, "small.tflite", quantization="int8", representative_data=x[:64])
    except keras_pcp.errors.ExportError as error:
        print(error, keras_pcp.__version__)
        return keras_pcp.count_cost(small).macs
    return keras_pcp.measure_latency(file.path, runs=10, threads=2) + file.max_error

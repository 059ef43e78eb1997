"""Adaptive channel pruning: marks, the freeze point, correction, and the callback in `fit`."""

import json
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from by_hand import graph_of, group
from tiny_fits import network, samples

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, LimitError
from keras_pcp.graph.weight_masks import consumer_masks
from keras_pcp.repair.closed_form import Compensation
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.strategies import Adaptive

L = keras.layers


@dataclass
class Seen:
    """An observation with scores that the test gives."""

    found: dict[str, list[float]]
    uncut: Any
    target: float
    moment: int
    moments: int = 4
    step: int = 0
    next: int = 1
    spectra: dict[str, list[float]] = field(default_factory=dict)

    def scores(self, criterion=None):
        found = self.found if criterion is None else self.spectra or {n: [1.0] * len(v) for n, v in self.found.items()}
        return {
            name: np.where(self.uncut.keep[name], np.array(values, float), -np.inf) for name, values in found.items()
        }


def problem_of(*sizes, limit=0.5):
    graph = graph_of(*(group(f"g{i}", n) for i, n in enumerate(sizes)))
    return Problem.of(graph, Limits(max_macs=limit))


def test_a_channel_is_removed_when_it_has_been_marked_for_long_enough():
    problem, strategy = problem_of(8), Adaptive(patience=1)
    state, kept = strategy.init(problem), problem.nothing_removed()
    scores = {"g0": [1, 2, 3, 4, 5, 6, 7, 8]}
    state, action = strategy.update(problem, state, Seen(scores, kept, 0.5, 0))
    assert action is None
    assert state.age["g0"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    # Channel 0 has become important, so it is free again; channel 1 is removed; channel 2 is marked.
    scores = {"g0": [9, 2, 3, 4, 5, 6, 7, 8]}
    state, action = strategy.update(problem, state, Seen(scores, kept, 0.5, 1))
    assert np.flatnonzero(~action.keep.keep["g0"]).tolist() == [1]
    assert action.correct
    assert state.age["g0"].tolist() == [0, 2, 1, 0, 0, 0, 0, 0]
    # The last moment removes what is missing to the limit, marked before or not.
    state, action = strategy.update(problem, state, Seen(scores, action.keep, 1.0, 3))
    assert np.flatnonzero(~action.keep.keep["g0"]).tolist() == [1, 2, 3, 4]


def test_without_patience_what_is_marked_goes_at_once():
    problem = problem_of(8)
    strategy = Adaptive(patience=0)
    seen = Seen({"g0": [1, 2, 3, 4, 5, 6, 7, 8]}, problem.nothing_removed(), 0.5, 0)
    _, action = strategy.update(problem, strategy.init(problem), seen)
    assert np.flatnonzero(~action.keep.keep["g0"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rates", "widths"),
    [("threshold", [1, 7]), ("local", [4, 4]), ("global", [4, 4]), ("effective_rank", [5, 3])],
)
def test_each_group_has_its_rate(rates, widths):
    problem = problem_of(8, 8)
    strategy = Adaptive(rates=rates)
    scores = {"g0": [1, 2, 3, 4, 5, 6, 7, 8], "g1": [10, 20, 30, 40, 50, 60, 70, 80]}
    spectra = {"g0": [1.0] * 8, "g1": [1.0] * 4 + [0.0] * 4}  # effective ranks 8 and 4
    seen = Seen(scores, problem.nothing_removed(), 1.0, 3, spectra=spectra)
    _, action = strategy.update(problem, strategy.init(problem), seen)
    assert [int(mask.sum()) for mask in action.keep.keep.values()] == widths


def test_final_widths_are_multiples_and_at_least_so_many():
    problem = problem_of(16, 16)
    strategy = Adaptive(patience=0, multiple_of=4, min_channels={"g1": 12})
    scores = {"g0": list(range(16)), "g1": list(range(16))}
    _, action = strategy.update(problem, strategy.init(problem), Seen(scores, problem.nothing_removed(), 1.0, 3))
    assert [np.count_nonzero(mask) for mask in action.keep.keep.values()] == [4, 12]
    with pytest.raises(InvalidArgumentError, match="not groups"):
        Adaptive(multiple_of={"g7": 4}).init(problem)
    with pytest.raises(LimitError):
        Adaptive(min_channels=12).init(problem)


def test_the_penalty_is_on_what_is_marked_and_not_yet_removed():
    model = network()
    problem = Problem.of(keras_pcp.build_graph(model), Limits(max_macs=0.5))
    strategy = Adaptive(protection=3.0)
    state = strategy.init(problem)
    assert strategy.loss_terms(problem, state) == []
    scores = {"first": np.arange(8), "second": np.arange(8)}
    seen = Seen(scores, problem.nothing_removed(), 0.5, 0, step=4, next=9)
    state, _ = strategy.update(problem, state, seen)
    (term,) = strategy.loss_terms(problem, state)
    assert (term.weight, term.start, term.steps) == (3.0, 4, 5)
    marked = {place.marked for place in term.places if place.filters}
    assert marked == {tuple((state.age[name] > 0).tolist()) for name in ("first", "second")}
    assert Adaptive(protection=0.0).loss_terms(problem, state) == []
    back = strategy.state_from_json(json.loads(json.dumps(strategy.state_to_json(state))))
    assert strategy.loss_terms(problem, back) == [term]


def test_options_and_limits_are_checked():
    for options in ({"rates": "all"}, {"patience": -1}, {"protection": -0.1}, {"moments": 0}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            Adaptive(**options)
    model, (x, y) = network(), samples()
    with pytest.raises(LimitError):
        model.fit(x, y, verbose=0, callbacks=[keras_pcp.AdaptivePruning(max_macs=10)])


def pruned(pruning, model=None, epochs=4):
    model = model or network()
    full = keras_pcp.count_cost(model).macs
    model.fit(*samples(), batch_size=8, epochs=epochs, verbose=0, callbacks=[pruning])
    return model, keras_pcp.count_cost(model).macs / full


def test_fit_prunes_without_validation_data_and_reports_what_the_correction_did(tmp_path):
    pruning = keras_pcp.AdaptivePruning(max_macs=0.5)
    model, share = pruned(pruning)
    report = pruning.report
    assert report.reached
    assert 0.3 < share <= 0.5  # one channel is a tenth of the cost
    assert [cut.step for cut in report.cuts] == report.shrinks
    for cut in report.cuts:
        assert set(cut.errors) <= {"second", model.layers[-1].name}
        assert 0 < cut.error[1] < cut.error[0]
        assert min(cut.singular_value) > 0
    assert "with correction; mean singular value" in str(report)
    assert report.to_json(tmp_path / "report.json")["cuts"][0]["errors"].keys() == report.cuts[0].errors.keys()
    assert not {"compute_loss", "make_train_function"} & set(vars(model))
    assert {w.name for w in model.weights} == {w.name for w in network().weights}


def test_corrected_weights_are_those_of_least_squares_on_the_latest_batches():
    """The reader's weights right after the cut, against `Compensation` on the samples that were kept."""
    caught = []

    class Catch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            caught.append((self.model.get_weights(), pruning._run.run.latest()))

    strategy = Adaptive(patience=0, protection=0.0, moments=1)
    pruning = keras_pcp.AdaptivePruning(strategy=strategy, max_macs=0.75, begin=0.5, end=0.9)
    model = network(optimizer=keras.optimizers.SGD(0.0))
    x, y = samples()
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[Catch(), pruning])
    (cut,) = pruning.report.shrinks
    weights, latest = caught[cut - 1]
    before = network()
    before.set_weights(weights)
    graph = keras_pcp.build_graph(before)
    selection = keras_pcp.Selection(dict(zip(graph.groups, pruning.report.selection.keep.values(), strict=True)))
    new = Compensation(before, consumer_masks(graph, selection), latest).values(consumer_masks(graph, selection))
    small = keras_pcp.prune_model(before, graph, selection)
    for i, value in new.items():
        axes = [selection.keep["first"], selection.keep["second"]]
        name = before.weights[i].path
        kept = value
        if "second/kernel" in name:
            kept = value[:, :, axes[0]][..., axes[1]]
        elif "dense" in name and value.ndim == 2:
            kept = value[axes[1]]
        elif "second/bias" in name:
            kept = value[axes[1]]
        small.weights[i].assign(kept)
    # The learning rate is 0, so nothing else has changed them since.
    for ours, theirs in zip(model.weights, small.weights, strict=True):
        if "moving" not in ours.path:
            assert np.allclose(ours.numpy(), theirs.numpy(), atol=1e-5), ours.path


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"steps_per_execution": 4}, {"jit_compile": True}, {"run_eagerly": True}], ids=["steps", "jit", "eager"]
)
def test_ways_to_compile_go_on(options):
    model = network()
    model.compile("adam", model.loss, metrics=["accuracy"], **options)
    pruning = keras_pcp.AdaptivePruning(max_macs=0.5)
    pruned(pruning, model)
    assert pruning.report.reached
    assert pruning.report.cuts


@pytest.mark.slow
def test_mixed_precision_goes_on():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
        pruning = keras_pcp.AdaptivePruning(max_macs=0.5)
        pruned(pruning, model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert pruning.report.reached
    assert np.isfinite(model.predict(samples()[0], verbose=0)).all()


def test_inputs_that_are_not_known_leave_the_cut_uncorrected():
    i = keras.Input((None, None, 1))
    x = L.ReLU()(L.Conv2D(8, 3, name="first")(i))
    model = keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruning = keras_pcp.AdaptivePruning(max_params=0.6)
    model.fit(*samples(), batch_size=8, epochs=4, verbose=0, callbacks=[pruning])
    assert pruning.report.reached
    assert pruning.report.cuts == []
    assert "cuts are not corrected" in pruning.report.notes[-1]


@pytest.mark.slow
def test_several_inputs_integers_and_accumulated_gradients():
    words, image = keras.Input((5,), dtype="int32", name="words"), keras.Input((6, 6, 1), name="image")
    x = L.Flatten()(L.Embedding(20, 8)(words))
    y = L.Flatten()(L.ReLU()(L.Conv2D(8, 3, name="conv")(image)))
    hidden = L.Dense(12, activation="relu", name="hidden")(L.Concatenate()([x, y]))
    model = keras.Model({"words": words, "image": image}, L.Dense(3)(hidden))
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = samples()
    data = {"words": np.random.default_rng(0).integers(0, 20, (64, 5)), "image": images}
    pruning = keras_pcp.AdaptivePruning(max_macs=0.5)
    model.fit(data, labels, batch_size=8, epochs=4, verbose=0, callbacks=[pruning])
    assert pruning.report.reached
    for cut in pruning.report.cuts:
        assert cut.singular_value is None  # integers have no gradient
        assert 0 < cut.error[1] < cut.error[0]


def test_the_penalty_grows_with_the_training_steps_even_if_gradients_accumulate():
    seen = []

    @dataclass(frozen=True)
    class Watched(Adaptive):
        def loss_terms(self, problem, state):
            return [watch]

    def watch(loss, batch):
        seen.append(int(batch.step))
        return loss

    model = network()
    model.compile(keras.optimizers.SGD(0.05, gradient_accumulation_steps=4), model.loss, run_eagerly=True)
    pruned(keras_pcp.AdaptivePruning(strategy=Watched(), max_macs=0.5), model, epochs=2)
    assert seen == [4 * (i // 4) for i in range(16)]


@pytest.mark.slow
def test_a_refit_takes_the_place_of_the_correction():
    pruning = keras_pcp.AdaptivePruning(max_macs=0.5, refit_data=samples()[0])
    pruned(pruning)
    assert pruning.report.reached
    assert pruning.report.cuts == []


@pytest.mark.slow
def test_a_distributed_model_is_pruned_corrected_and_taught():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = network()
    pruning = keras_pcp.AdaptivePruning(max_macs=0.5, distillation=keras_pcp.Distillation(0.5))
    pruned(pruning, model)
    assert pruning.report.reached
    assert all(0 < cut.error[1] < cut.error[0] for cut in pruning.report.cuts)

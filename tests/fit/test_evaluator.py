"""Attempts that compute only what changes, and the search without training."""

import json

import keras
import numpy as np
import pytest
from test_progressive_pruning import compiled, data, network, same_state, state_of
from zoo import ZOO, build, inputs_for, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.fit import evaluator as evaluation
from keras_pcp.fit.compare import Comparison
from keras_pcp.fit.evaluator import Evaluator
from keras_pcp.fit.metric import Monitor
from keras_pcp.fit.rerun import Recording, Rerun
from keras_pcp.fit.run import Search
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.graph.trace import arrange_inputs, trace
from keras_pcp.graph.weight_masks import consumer_masks
from keras_pcp.repair.least_squares import inputs_at_once
from keras_pcp.select.budget import Limits
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.surgery.masks import masked, with_zeros

L = keras.layers


@pytest.mark.parametrize("name", ZOO)
def test_a_rerun_with_some_weights_changed_equals_a_whole_run(name):
    model = build(name)
    x = inputs_for(model)
    graph = keras_pcp.build_graph(model)
    traced = trace(model)
    recording = Recording(traced, arrange_inputs(traced, x))
    expected = keras.tree.flatten(model(x, training=False))
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(recording.outputs, expected, strict=True))
    for group in list(graph)[:3]:
        selection = keras_pcp.Selection({group.name: random_selection(graph, 0).keep[group.name]})
        readers = {id(model.weights[s.weight]) for s in group.slices_of("consume")}
        users = {id(o) for o in traced.operations if any(id(w) in readers for w in getattr(o, "weights", ()))}
        users -= {id(o) for o in traced.operations if isinstance(o, keras.Model)}
        weights = [w for w in model.weights if id(w) in readers]
        rerun = Rerun(traced, users, weights)
        with masked(model, graph, selection):
            values = [w.numpy() for w in weights]
            expected = keras.tree.flatten(model(x, training=False))
        found = [rerun.run(recording, values) for _ in range(8)]  # the last ones are compiled
        assert rerun.runs == 8
        assert "compiled" in vars(rerun)
        for outputs in found:
            assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(outputs, expected, strict=True))
        first = min(n for n, call in enumerate(traced.calls) if id(call.operation) in users)
        assert len(rerun.calls) <= len(traced.calls) - first


def searches(model, **options):
    samples = options.pop("samples", 64)
    return Search(
        model,
        Limits(max_macs=0.5),
        data(samples, 1),
        options.pop("criterion", "l1"),
        Progressive(samples=None, **options),
        (),
        "error",
    )


def sequential():
    layers = [L.Conv2D(12, 3, name="first"), L.BatchNormalization(), L.ReLU(), L.Conv2D(8, 3), L.ReLU()]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, L.Flatten(), L.Dense(4, name="logits")])


@pytest.mark.parametrize("make", [None, sequential])
@pytest.mark.parametrize("eagerly", [False, True])
def test_comparing_on_all_parts_gives_what_evaluating_attempts_gives(eagerly, make):
    model = compiled(make and make(), run_eagerly=eagerly)
    model.fit(*data(), epochs=1, verbose=0)
    search = searches(model)
    start = search.state.selection
    keep = np.ones(12, bool)
    keep[[1, 4, 5]] = False
    name = next(iter(search.graph.groups))
    attempt = keras_pcp.Selection({**start.keep, name: keep})
    before, after = search.evaluate(start), search.evaluate(attempt)
    parts = [search.compare({"it": attempt}, part) for part in search.parts]
    metrics = [np.concatenate([p[0] for p in parts]), np.concatenate([p[1]["it"] for p in parts])]
    assert [len(m) * search.evaluator.chunk for m in metrics] == [64, 64]
    assert metrics[0].mean(axis=0) == pytest.approx([before.metric, before.loss], abs=1e-5)
    expected = [before.metric - after.metric, after.loss - before.loss]
    assert metrics[1].mean(axis=0) == pytest.approx(expected, abs=1e-5)


def test_samples_are_divided_only_where_the_mean_over_chunks_is_the_metric():
    def parts(metrics, weights=None):
        model = compiled(**metrics)
        x, y = data(64, 1)
        return Evaluator(model, (x, y) if weights is None else (x, y, weights), None, 0).parts

    assert len(parts({"metrics": ["accuracy"]})) == 2
    assert parts({"metrics": [Peak()]}) == []
    uneven = np.linspace(0, 4, 64).astype("float32")
    assert parts({"metrics": [], "weighted_metrics": ["accuracy"]}, uneven) == []
    model = compiled(metrics=[Peak()])
    selection = keras_pcp.search_widths(model, max_macs=0.8, validation_data=data(64, 1), verbose=False)
    assert selection.num_removed > 0


class Peak(keras.metrics.Metric):
    """A metric that is no mean: the largest logit seen, called an accuracy so that it counts."""

    def __init__(self, name="accuracy"):
        super().__init__(name=name)
        self.peak = self.add_weight(name="peak", initializer="zeros")

    def update_state(self, y, predicted, sample_weight=None):
        self.peak.assign(keras.ops.maximum(self.peak, keras.ops.max(predicted)))

    def result(self):
        return self.peak + 0


def test_parts_are_small_where_a_model_has_large_tensors():
    i = keras.Input((512, 512, 3))
    x = L.Conv2D(64, 3, padding="same")(i)
    model = keras.Model(i, L.Dense(4)(L.GlobalAveragePooling2D()(L.Conv2D(64, 3, padding="same")(x))))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    evaluator = Evaluator(model, (np.zeros((2, 512, 512, 3), "float32"), np.zeros(2, int)), None, 0)
    evaluator.count = 4096  # only counted with
    assert evaluator.chunk == 1
    assert Evaluator(compiled(), data(1024), None, 0).chunk == 16


def test_parts_are_about_equal_and_bounded(monkeypatch):
    def sizes(samples):
        parts = Evaluator(compiled(), data(samples), None, 0).parts
        assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
        return [p.stop - p.start for p in parts]

    assert sizes(272) == [6, 5, 6]  # not 8, 8, 1: a race cannot begin with one chunk
    assert set(sizes(4096)) == {16}
    monkeypatch.setattr(evaluation, "_PART_BYTES", 1)
    assert len(sizes(4096)) == 512  # chunks of one sample, eight of them at a time


def test_macs_of_attempts_are_counted():
    model = compiled()
    graph = keras_pcp.build_graph(model)
    cost = count_cost(graph)
    evaluator = Evaluator(model, data(64, 1), None, 0)
    comparison = Comparison(evaluator, graph)
    last = list(graph.groups)[-1]
    keep = np.arange(graph[last].num_channels) > 0
    masks = consumer_masks(graph, keras_pcp.Selection({last: keep}))
    comparison.compare({"last": with_zeros(model, masks)}, slice(0, 4))
    samples = 4 * evaluator.chunk
    assert comparison.macs == samples * (cost.macs + cost.layers["logits"].macs)


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """Hides a batch normalization, and a weight of its own, so that it stays closed."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.norm = L.BatchNormalization()
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.scale * self.norm(x, training=training)


@pytest.mark.parametrize("attempts", ["fast", "exact"])
def test_a_search_without_training_leaves_the_model_alone(attempts):
    plain = network()
    logits = L.Dense(4)(L.Dropout(0.2)(Block()(plain.layers[-2].output)))
    model = compiled(keras.Model(plain.input, logits))
    model.fit(*data(), epochs=2, verbose=0)
    before, metrics = state_of(model), [v.numpy() for v in model.variables]
    graph = keras_pcp.build_graph(model, on_unknown="freeze")
    selection = keras_pcp.search_widths(
        model,
        max_macs=0.5,
        validation_data=data(64, 1),
        strategy=Progressive(attempts=attempts),
        verbose=False,
        on_unknown="freeze",
    )
    assert same_state(before, state_of(model))
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(metrics, model.variables, strict=True))
    assert count_cost(graph, selection).macs <= 0.5 * count_cost(graph).macs
    small = keras_pcp.prune_model(model, graph, selection)
    assert count_cost(small).macs == count_cost(graph, selection).macs


def test_a_search_goes_on_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    model = compiled()
    model.fit(*data(), epochs=1, verbose=0)
    options = {"max_macs": 0.6, "validation_data": data(64, 1)}
    whole = keras_pcp.search_widths(model, **options, verbose=False)
    file, usual, rounds = tmp_path / "search.json", Search.run_round, []

    def interrupted(self, target):
        rounds.append(target)
        if len(rounds) == 4:
            raise KeyboardInterrupt
        usual(self, target)

    monkeypatch.setattr(Search, "run_round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keras_pcp.search_widths(model, **options, checkpoint=file, verbose=False)
    assert len(json.loads(file.read_text())["state"]["rounds"]) == 3
    assert keras_pcp.search_widths(model, **options, checkpoint=file) == whole
    assert "macs" in capsys.readouterr().out
    with pytest.raises(InvalidArgumentError, match="belongs to another search: its limits"):
        keras_pcp.search_widths(model, **{**options, "max_macs": 0.7}, checkpoint=file, verbose=False)
    model.layers[1].set_weights([w * 2 for w in model.layers[1].get_weights()])
    with pytest.raises(InvalidArgumentError, match="its weights differ"):
        keras_pcp.search_widths(model, **options, checkpoint=file, verbose=False)
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        keras_pcp.search_widths(model, **options, checkpoint=tmp_path / "nowhere" / "s.json", verbose=False)


def test_several_criteria_may_be_given():
    model = compiled()
    model.fit(*data(), epochs=1, verbose=0)
    selection = keras_pcp.search_widths(
        model, max_macs=0.6, validation_data=data(64, 1), criterion=("l1", "random", "taylor"), verbose=False
    )
    graph = keras_pcp.build_graph(model)
    assert count_cost(graph, selection).macs <= 0.6 * count_cost(graph).macs
    alone = keras_pcp.search_widths(model, max_macs=0.6, validation_data=data(64, 1), verbose=False)
    assert alone != selection
    with pytest.raises(InvalidArgumentError, match="empty"):
        keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=data(64, 1), criterion=())


@pytest.mark.parametrize(
    "strategy",
    [keras_pcp.strategies.OneShot(), keras_pcp.strategies.RandomWidths(), keras_pcp.strategies.LayerByLayer()],
)
def test_what_goes_by_one_criterion_refuses_several_before_training(strategy):
    model = compiled()
    before = model.get_weights()
    pruning = keras_pcp.ProgressivePruning(
        max_macs=0.5, validation_data=data(64, 1), criterion=("l1", "fpgm"), strategy=strategy
    )
    with pytest.raises(InvalidArgumentError, match=f"{type(strategy).__name__} goes by one criterion, but 2 are given"):
        model.fit(*data(), epochs=1, verbose=0, callbacks=[pruning])
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.parametrize("attempts", ["fast", "exact"])
def test_readers_of_pruned_channels_are_refit_after_a_shrink(attempts):
    """With copies of channels, a refit gives back exactly what pruning takes, and attempts know it."""
    keras.utils.set_random_seed(0)
    i = keras.Input((8, 8, 1))
    x = L.Conv2D(8, 3, name="copies")(i)
    model = keras.Model(i, L.Dense(4)(L.Flatten()(L.Conv2D(6, 3, name="reader")(x))))
    kernel, bias = model.get_layer("copies").get_weights()
    kernel[..., 4:], bias[4:] = kernel[..., :4], bias[:4]
    model.get_layer("copies").set_weights([kernel, bias])
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    x, y = data(64)
    expected = model.predict(x, verbose=0)

    def last_first(group, statistics):
        return -np.arange(group.num_channels)

    callback = keras_pcp.ProgressivePruning(
        max_macs=0.6,
        validation_data=data(64, 1),
        frozen_layers=["reader"],
        refit_data=(x, y),
        criterion=last_first,
        strategy=Progressive(groups_per_round=1, attempts=attempts),
    )
    model.fit(x, y, epochs=4, batch_size=16, verbose=0, callbacks=[callback])
    tried = [a for r in callback.report.rounds for a in r.attempts if a.group == "copies"]
    assert max(abs(a.loss_increase) for a in tried) < 5e-3  # 0.09 without
    kept = callback.report.selection.keep["copies"]
    assert np.flatnonzero(kept).tolist()[:4] == [0, 1, 2, 3]
    assert not kept.all()
    assert np.allclose(model.predict(x, verbose=0), expected, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_a_search_with_a_refit_works_on_a_copy_and_goes_on_from_its_checkpoint(tmp_path, criterion):
    model = compiled()
    model.fit(*data(), epochs=1, verbose=0)
    before = state_of(model)
    options = {
        "max_macs": 0.5,
        "validation_data": data(64, 1),
        "criterion": criterion,
        "verbose": False,
        "strategy": Progressive(step=0.05),
        "refit_data": data(48, 2),
    }
    found = keras_pcp.search_widths(model, checkpoint=tmp_path / "state.json", **options)
    assert same_state(before, state_of(model))
    graph = keras_pcp.build_graph(model)
    assert count_cost(graph, found).macs <= 0.5 * count_cost(graph).macs
    assert keras_pcp.search_widths(model, checkpoint=tmp_path / "state.json", **options) == found
    saved = json.loads((tmp_path / "state.json").read_text())
    assert len(saved["state"]["rounds"]) > 2
    other = options | {"refit_data": data(48, 3)}
    with pytest.raises(InvalidArgumentError, match="refit_data"):
        keras_pcp.search_widths(model, checkpoint=tmp_path / "state.json", **other)


def test_between_two_rounds_with_a_refit_the_model_has_to_be_shrunk():
    model = compiled()
    search = Search(model, Limits(max_macs=0.5), data(64, 1), "l1", Progressive(), (), "error", refit_data=data(48, 2))
    search.run_round(0.1)
    with pytest.raises(PruningError, match="shrunk"):
        search.run_round(0.2)
    assert search.prune()
    assert not search.prune()
    search.run_round(0.2)


def test_rounds_without_training_between_them_end_with_one_refit_from_where_they_began(monkeypatch):
    model, some = compiled(), data(600, 2)
    search = Search(model, Limits(max_macs=0.4), data(64, 1), "l1", Progressive(), (), "error", refit_data=some)
    asked, graph = [], search.graph

    def refit(*args, samples, **options):
        asked.append(samples)
        return keras_pcp.refit(*args, samples=samples, **options)

    monkeypatch.setattr("keras_pcp.fit.run.refit", refit)
    for targets in ((0.3, 0.5), (0.7, 1.0)):
        whole, graph, done = keras_pcp.prune_model(model, graph, keras_pcp.Selection()), search.live_graph, search.done
        search.run_round(targets[0])
        search.prune(more=True)
        search.run_round(targets[1])
        search.prune()
        selection = search.done.after(done)
        expected = keras_pcp.prune_model(whole, graph, selection)
        assert not same_weights(model, expected)
        keras_pcp.refit(whole, expected, graph, selection, some, samples=600)
        assert same_weights(model, expected)
        graph = search.live_graph
        for w in model.trainable_weights:
            w.assign(1.1 * w)  # instead of training
    assert asked == [512, 2048, 512, 2048]


def same_weights(a, b):
    return all(np.allclose(v, w, atol=1e-5) for v, w in zip(a.get_weights(), b.get_weights(), strict=True))


def test_a_refit_takes_fewer_samples_where_tensors_are_large(monkeypatch):
    monkeypatch.setattr("keras_pcp.repair.least_squares._BYTES_AT_ONCE", 4 * 8 * 8 * 16 * 20)
    model = compiled()
    largest = max(np.prod(t.shape[1:]) for t in trace(model).tensors)
    few = 8 * 8 * 16 * 20 // largest
    assert len(inputs_at_once(model, data(600, 2), 512, 0)) == few < 512
    graph = keras_pcp.build_graph(model)
    masks = {g.name: np.arange(g.num_channels) > 0 for g in graph}
    pruned = keras_pcp.prune_model(model, graph, keras_pcp.Selection(masks))
    lengths = set()
    draw = keras_pcp.repair.least_squares.draw
    monkeypatch.setattr(
        "keras_pcp.repair.least_squares.draw", lambda rng, n, *rest: (lengths.add(n), draw(rng, n, *rest))[1]
    )
    keras_pcp.refit(model, pruned, graph, keras_pcp.Selection(masks), data(600, 2))
    assert lengths == {few}


def test_with_the_loss_as_monitor_metrics_do_not_matter():
    found = []
    for metrics, monitor in ((["accuracy"], "loss"), (None, None), (["accuracy"], None)):
        keras.backend.clear_session()  # so that names of layers are the same
        model = compiled(metrics=metrics)
        search = Search(
            model, Limits(max_macs=0.5), data(64, 1), "l1", Progressive(), (), "error", monitor=Monitor(monitor)
        )
        search.run_round(0.3)
        found.append(search.state.rounds[0])
    loss, without_metrics, metric = found
    assert loss == without_metrics
    assert loss.before.metric == pytest.approx(-loss.before.loss)
    assert all(a.drop == pytest.approx(a.loss_increase, abs=1e-6) for a in loss.attempts)
    assert metric.before.metric != loss.before.metric
    assert metric.before.loss == pytest.approx(loss.before.loss)


def test_masked_positions_do_not_count():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 50, (64, 12))
    x[np.arange(12) >= rng.integers(2, 6, (64, 1))] = 0  # padding
    y = np.where(x == 0, 2, x % 3)
    tokens = keras.Input((12,), dtype="int32")
    hidden = L.Dense(8, activation="relu")(L.Embedding(50, 8, mask_zero=True)(tokens))
    model = compiled(keras.Model(tokens, L.Dense(3)(hidden)))
    model.fit(x, y, epochs=3, verbose=0)
    evaluator = Evaluator(model, (x, y), None, 0)
    found = evaluator.evaluate()
    assert (found.loss, found.metric) == pytest.approx(tuple(model.evaluate(x, y, batch_size=64, verbose=0)), abs=1e-5)
    assert evaluator.parts == []
    unmasked = keras.losses.sparse_categorical_crossentropy(y, model.predict(x, verbose=0), from_logits=True)
    assert found.loss != pytest.approx(float(keras.ops.mean(unmasked)), abs=1e-3)


def test_results_of_outputs_in_a_dict_are_told_by_the_name_of_the_metric():
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 12):
        pytest.skip("early versions know outputs by their layers only")
    i = keras.Input((8,))
    model = keras.Model(i, {"box": L.Dense(4)(i), "iou": L.Dense(1)(i)})
    model.compile("sgd", {"box": "mse", "iou": "mse"}, metrics={"box": ["mae"], "iou": ["mae"]})
    x = np.random.default_rng(0).normal(size=(32, 8))
    found = Evaluator(model, (x, {"box": x[:, :4], "iou": x[:, 4:5]}), None, 0).evaluate()
    assert found.metric == pytest.approx(-found.loss)  # "iou_mae" is no accuracy
    model.compile("sgd", {"box": "mse", "iou": "mse"}, metrics={"iou": [keras.metrics.BinaryAccuracy(name="acc")]})
    y = (x[:, 4:5] > 0).astype(float)
    found = Evaluator(model, (x, {"box": x[:, :4], "iou": y}), None, 0, monitor=Monitor("iou_acc")).evaluate()
    predicted = model.predict(x, verbose=0)["iou"] > 0.5
    assert found.metric == pytest.approx((predicted == y).mean())


class OwnStep(keras.Model):
    """With metrics that only its own train_step and test_step bring up to date."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    @property
    def metrics(self):
        return [self.own]


def test_metrics_that_compute_metrics_leaves_alone_are_left_out():
    i = keras.Input((8,))
    model = OwnStep(i, L.Dense(4)(i))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(32, 8))
    evaluator = Evaluator(model, (x, np.arange(32) % 4), None, 0)
    found = evaluator.evaluate()
    assert evaluator.results == ["loss"]
    assert found.metric == pytest.approx(-found.loss)


def test_a_metric_that_is_a_mean_by_chance_is_not_raced():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 1))
    i = keras.Input((1,))
    model = keras.Model(i, L.Dense(1, activation="sigmoid", kernel_initializer="ones")(i))
    y = (x > 0).astype(int)
    model.compile("sgd", "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    evaluator = Evaluator(model, (x, y), None, 0)
    assert evaluator.evaluate().metric == pytest.approx(1.0, abs=1e-3)
    assert evaluator.parts == []
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    assert Evaluator(model, (x, y), None, 0).parts


def test_more_entries_in_a_dict_of_inputs_are_passed_over():
    a, b = keras.Input((8,), name="first"), keras.Input((8,), name="second")
    model = keras.Model({"a": a, "b": b}, L.Dense(4)(L.Dense(16)(L.Concatenate()([a, b]))))
    model = compiled(model)
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(64, 8)) for name in ("b", "id", "a")}
    search = Search(model, Limits(max_macs=0.5), (x, np.arange(64) % 4), "l1", Progressive(), (), "error")
    search.run_round(1.0)
    traced = trace(model)
    assert [v.numpy().tolist() for v in arrange_inputs(traced, {k: x[k][:1] for k in x})] == [
        x[k][:1].astype("float32").tolist() for k in "ab"
    ]


def test_a_checkpoint_belongs_to_its_labels_and_metrics(tmp_path):
    keras.backend.clear_session()  # so that names of layers are the same
    model, (x, y) = compiled(), data(64, 1)
    options = {"max_macs": 0.5, "checkpoint": tmp_path / "search.json", "verbose": False}
    keras_pcp.search_widths(model, validation_data=(x, y), **options)
    with pytest.raises(InvalidArgumentError, match="its samples differ"):
        keras_pcp.search_widths(model, validation_data=(x, 3 - y), **options)
    keras.backend.clear_session()
    other = compiled(metrics=[])
    with pytest.raises(InvalidArgumentError, match="its monitor, loss and metrics differ"):
        keras_pcp.search_widths(other, validation_data=(x, y), **options)


def test_missing_labels_are_named():
    with pytest.raises(InvalidArgumentError, match="validation_data has no labels"):
        Evaluator(compiled(), (data(64, 1)[0], None), None, 0)

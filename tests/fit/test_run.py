"""Rounds of pruning: refits between them, several criteria, and what each of them is given."""

import keras
import numpy as np
import pytest
from runs import round_to, run_of
from small_fits import compiled, data

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.fit import live_model
from keras_pcp.fit.metric import Measuring
from keras_pcp.graph.trace import arrange_inputs, trace
from keras_pcp.strategies.progressive import Progressive

L = keras.layers


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


def test_between_two_rounds_with_a_refit_the_model_has_to_be_shrunk():
    model = compiled()
    run = run_of(model, data(64, 1), refit_data=data(48, 2))
    round_to(run, 0.1)
    with pytest.raises(PruningError, match="shrunk"):
        round_to(run, 0.2)
    assert run.carry_out(None)
    assert not run.carry_out(None)
    round_to(run, 0.2)


@pytest.mark.slow
def test_rounds_without_training_between_them_end_with_one_refit_from_where_they_began(monkeypatch):
    model, some = compiled(), data(600, 2)
    run = run_of(model, data(64, 1), refit_data=some, max_macs=0.4)
    asked, graph = [], run.problem.graph

    def noted(name, samples_of):
        original = getattr(live_model, name)
        monkeypatch.setattr(
            live_model, name, lambda *args: (asked.append((name, samples_of(args))), original(*args))[1]
        )

    noted("goals_of", lambda args: len(args[2]))
    noted("refit_to", lambda args: len(args[0].x))
    noted("refit", lambda args: len(args[4][0]))
    for targets in ((0.2, 0.3, 0.5), (0.7, 0.8, 1.0)):
        whole, graph, uncut = keras_pcp.prune_model(model, graph, keras_pcp.Selection()), run.live.graph, run.live.uncut
        for target in targets:
            round_to(run, target)
            run.carry_out(None, more=target < targets[-1])
        selection = run.live.uncut.after(uncut)
        expected = keras_pcp.prune_model(whole, graph, selection)
        assert not same_weights(model, expected)
        keras_pcp.refit(whole, expected, graph, selection, some, samples=600)
        assert same_weights(model, expected)
        graph = run.live.graph
        for w in model.trainable_weights:
            w.assign(1.1 * w)  # instead of training
    assert asked == [("goals_of", 512), ("refit_to", 512), ("refit_to", 512), ("refit", 600)] * 2


def same_weights(a, b):
    return all(np.allclose(v, w, atol=1e-5) for v, w in zip(a.get_weights(), b.get_weights(), strict=True))


def test_with_the_loss_as_monitor_metrics_do_not_matter():
    found = []
    for metrics, monitor in ((["accuracy"], "loss"), (None, None), (["accuracy"], None)):
        keras.backend.clear_session()  # so that names of layers are the same
        model = compiled(metrics=metrics)
        run = run_of(model, data(64, 1), measuring=Measuring(monitor=monitor))
        round_to(run, 0.3)
        found.append(run.rounds[0])
    loss, without_metrics, metric = found
    assert loss == without_metrics
    assert loss.before.metric == pytest.approx(-loss.before.loss)
    assert all(a.drop == pytest.approx(a.loss_increase, abs=1e-6) for a in loss.attempts)
    assert metric.before.metric != loss.before.metric
    assert metric.before.loss == pytest.approx(loss.before.loss)


def test_more_entries_in_a_dict_of_inputs_are_passed_over():
    a, b = keras.Input((8,), name="first"), keras.Input((8,), name="second")
    model = keras.Model({"a": a, "b": b}, L.Dense(4)(L.Dense(16)(L.Concatenate()([a, b]))))
    model = compiled(model)
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(64, 8)) for name in ("b", "id", "a")}
    run = run_of(model, (x, np.arange(64) % 4))
    round_to(run, 1.0)
    traced = trace(model)
    assert [v.numpy().tolist() for v in arrange_inputs(traced, {k: x[k][:1] for k in x})] == [
        x[k][:1].astype("float32").tolist() for k in "ab"
    ]

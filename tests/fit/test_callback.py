"""The callback in an ordinary `fit`."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_fits import compiled, data, network, same_state, state_of
from zoo import Odd, WithoutTraining, conv_bn

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, LimitError, UnsupportedModelError

L = keras.layers


def pruning(**kwargs):
    options = {"max_macs": 0.5, "validation_data": data(64, 1)} | kwargs
    return keras_pcp.ProgressivePruning(**options)


def test_after_fit_the_same_object_is_at_or_below_the_limit(tmp_path):
    model = compiled()
    hidden = model.layers[3]
    features = keras.Model(model.input, hidden.output)
    full, width = keras_pcp.count_cost(model), hidden.output.shape[-1]
    params, layers = model.count_params(), list(model.layers)
    callback = pruning()
    history = model.fit(*data(), epochs=4, verbose=0, callbacks=[callback])
    cost = keras_pcp.count_cost(model)
    assert 0.35 < cost.macs / full.macs <= 0.5
    assert model.count_params() < params
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    assert features(data()[0][:2]).shape[-1] == hidden.output.shape[-1] < width
    assert history.history["macs"][-1] == cost.macs
    assert history.history["params"][-1] == cost.params == model.count_params()
    assert history.history["pruning_ratio"][-1] == pytest.approx(callback.report.pruning_ratio)
    assert history.history["macs"] == sorted(history.history["macs"], reverse=True)
    model.save(tmp_path / "m.keras")
    x = data()[0][:5]
    assert np.array_equal(keras.models.load_model(tmp_path / "m.keras")(x), model(x))


def test_the_report_records_every_round(tmp_path, capsys):
    model = compiled()
    full = keras_pcp.count_cost(model)
    groups = len(keras_pcp.build_graph(model))
    callback = pruning()
    model.fit(*data(), epochs=4, verbose=0, callbacks=[callback])
    report = callback.report
    assert report.reached
    assert report.rounds
    assert report.shrinks == sorted(set(report.shrinks))
    for i, r in enumerate(report.rounds):
        assert 1 <= len(r.attempts) <= groups
        assert set(r.chosen) <= {a.group for a in r.attempts}
        drops = [a.drop for a in r.attempts]
        assert drops == sorted(drops)
        assert r.macs < (report.rounds[i - 1].macs if i else full.macs)
    assert report.rounds[-1].macs == report.after["macs"] == keras_pcp.count_cost(model).macs
    assert {n: now for n, (_, now) in report.widths.items()} == {
        g.name: g.num_channels for g in keras_pcp.build_graph(model)
    }
    assert min(report.seconds.values()) >= 0
    assert report.seconds["attempts"] > 0
    text = str(report)
    assert "limits reached" in text
    assert all(name in text for name in report.widths)
    stored = report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == stored
    assert keras_pcp.Selection.from_json(stored["selection"]) == report.selection
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_selection_in_the_report_turns_the_unpruned_model_into_the_pruned_one():
    original = compiled()
    graph = keras_pcp.build_graph(original)
    model = compiled(keras.models.clone_model(original))
    callback = pruning()
    model.fit(*data(), epochs=4, verbose=0, callbacks=[callback])
    rebuilt = keras_pcp.prune_model(original, graph, callback.report.selection)
    assert [w.shape for w in rebuilt.weights] == [w.shape for w in model.weights]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"steps_per_execution": 4},
        pytest.param(
            {"optimizer": keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 64), momentum=0.9)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["run_eagerly", "jit_compile", "steps_per_execution", "learning_rate_schedule"],
)
def test_ways_to_compile_go_on(options):
    model = compiled(**options)
    callback = pruning()
    history = model.fit(*data(), epochs=4, verbose=0, callbacks=[callback], validation_data=data(64, 2))
    assert callback.report.reached
    assert len(callback.report.shrinks) > 1
    assert np.isfinite(history.history["loss"]).all()
    assert int(model.optimizer.iterations) == 32


@pytest.mark.slow
def test_a_refit_lets_one_step_remove_what_takes_several_without():
    for samples, expected in ((None, "needs at least 2"), (data(64, 3), None)):
        callback = pruning(refit_data=samples, begin=0.0, end=0.1)
        fit = {"epochs": 1, "verbose": 0, "callbacks": [callback]}
        if expected:
            with pytest.raises(InvalidArgumentError, match=expected):
                compiled().fit(*data(), **fit)
            continue
        compiled().fit(*data(), **fit)
        assert callback.report.reached
        assert len(callback.report.rounds) > 1
        assert callback.report.shrinks == [0]


def test_other_callbacks_go_on(tmp_path):
    model = compiled(optimizer=keras.optimizers.Adam(0.01))
    stopping = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
    every = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1)
    callback = pruning()
    history = model.fit(
        *data(),
        epochs=12,
        verbose=0,
        validation_data=data(64, 2),
        callbacks=[callback, stopping, best, every, plateau],
    )
    assert callback.report.reached
    restored = model.evaluate(*data(64, 2), verbose=0, return_dict=True)
    last_shrink_epoch = callback.report.shrinks[-1] // 8
    assert restored["loss"] == pytest.approx(min(history.history["val_loss"][last_shrink_epoch:]), abs=1e-5)
    sizes = [keras.models.load_model(tmp_path / f"{e}.keras").count_params() for e in (1, len(history.epoch))]
    assert sizes[1] < sizes[0]
    assert keras.models.load_model(tmp_path / "best.keras").count_params() == model.count_params()


def test_data_without_a_known_number_of_steps_is_pruned_at_epoch_ends():
    x, y = data()

    def batches():
        for i in range(0, len(x), 32):
            yield x[i : i + 32], y[i : i + 32]

    signature = (tf.TensorSpec((None, 8, 8, 1)), tf.TensorSpec((None,), "int64"))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    model, callback = compiled(), pruning()
    model.fit(dataset, epochs=5, verbose=0, callbacks=[callback])
    assert callback.report.reached


@pytest.mark.parametrize("epochs", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7))])
def test_the_limit_is_reached_with_time_left_whatever_the_number_of_epochs(epochs):
    model, callback = compiled(), pruning(max_macs=0.6)
    model.fit(*data(), batch_size=16, epochs=epochs, verbose=0, callbacks=[callback])
    assert callback.report.reached
    assert callback.report.shrinks[-1] <= 0.6 * 16 * epochs


@pytest.mark.slow
def test_a_new_callback_prunes_the_pruned_model_further():
    model = compiled()
    model.fit(*data(), epochs=3, verbose=0, callbacks=[pruning(max_macs=0.7)])
    between = keras_pcp.count_cost(model).macs
    model.fit(*data(), epochs=3, verbose=0, callbacks=[pruning(max_macs=int(0.7 * between))])
    assert keras_pcp.count_cost(model).macs <= 0.7 * between


@pytest.mark.slow
def test_several_limits_all_hold():
    model = compiled()
    full = keras_pcp.count_cost(model)
    model.fit(*data(), epochs=4, verbose=0, callbacks=[pruning(max_macs=int(0.8 * full.macs), max_params=0.4)])
    cost = keras_pcp.count_cost(model)
    assert cost.macs <= int(0.8 * full.macs)
    assert cost.params <= 0.4 * full.params


def test_frozen_layers_keep_their_width():
    model = compiled()
    name = model.layers[1].name
    callback = pruning(max_macs=0.7, frozen_layers=[name])
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    assert model.get_layer(name).filters == 12
    assert (name, 12, "named in frozen_layers") in callback.report.frozen


@pytest.mark.parametrize(
    "criterion",
    [
        "l2",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("bn_scale", "random", "taylor", "group_fisher_macs", "chip")
        ),
    ],
)
def test_criteria_by_name(criterion):
    model, callback = compiled(), pruning(criterion=criterion)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    assert callback.report.reached


def test_any_callable_is_a_criterion_and_its_order_is_followed():
    model = compiled()

    def first_channels_go(group, statistics):
        return np.arange(group.num_channels)

    callback = pruning(criterion=first_channels_go)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    for numbers in callback.report.selection.removed().values():
        assert numbers.tolist() == list(range(len(numbers)))


def test_progress_is_told_unless_verbose_is_0(capsys):
    compiled().fit(*data(), epochs=3, verbose=2, callbacks=[pruning()])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pruning at step")]
    assert lines
    assert "macs" in lines[-1]


@pytest.mark.parametrize("kind", ["dataset", pytest.param("weighted", marks=pytest.mark.slow)])
def test_validation_data_may_be_a_dataset_or_carry_weights(kind):
    x, y = data(64, 1)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    model, callback = compiled(), pruning(validation_data=dataset if kind == "dataset" else (x, y, np.ones(64)))
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    assert callback.report.reached


def test_regression_without_metrics_uses_the_loss():
    keras.utils.set_random_seed(0)
    model = network(classes=1)
    model.compile("adam", "mse")
    x, y = data()
    callback = pruning(validation_data=(x[:64], y[:64].astype("float32")))
    model.fit(x, y.astype("float32"), epochs=3, verbose=0, callbacks=[callback])
    assert callback.report.reached
    assert callback.report.rounds[0].before.metric == -callback.report.rounds[0].before.loss


def test_two_outputs_are_evaluated_together():
    keras.utils.set_random_seed(0)
    i = keras.Input((8, 8, 1))
    x = conv_bn(conv_bn(i, 8), 8)
    model = keras.Model(
        i,
        {
            "label": L.Dense(4, name="label")(L.GlobalAveragePooling2D()(x)),
            "size": L.Dense(1, name="size")(L.GlobalMaxPooling2D()(x)),
        },
    )
    model.compile(
        "adam",
        {"label": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"},
        metrics={"label": ["accuracy"]},
    )
    x, y = data()
    targets = {"label": y, "size": y.astype("float32")}
    callback = pruning(validation_data=(x, targets), measuring=keras_pcp.Measuring(monitor={"label_accuracy": 0.5}))
    model.fit(x, targets, epochs=3, verbose=0, callbacks=[callback])
    assert callback.report.reached
    assert 0 <= callback.report.rounds[0].before.metric <= 0.5


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_penalties_on_activations_and_weights_do_not_count_in_attempts(criterion):
    from keras_pcp.fit.evaluator import Evaluator

    def penalized(factor):
        keras.utils.set_random_seed(0)
        i = keras.Input((8, 8, 1))
        x = L.Conv2D(6, 3, activity_regularizer=keras.regularizers.L2(factor), kernel_regularizer="l2")(i)
        return compiled(keras.Model(i, L.Dense(4)(L.Flatten()(L.ReLU()(x)))))

    losses = [
        Evaluator(penalized(factor), data(64, 1), keras_pcp.Measuring(samples=None)).evaluate().loss
        for factor in (0.0, 5.0)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    model, callback = penalized(0.01), pruning(criterion=criterion)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    assert callback.report.reached


def test_attempts_leave_running_metrics_and_statistics_alone():
    from keras_pcp.fit.evaluator import Evaluator

    model = compiled()
    model.fit(*data(), verbose=0)
    model.train_on_batch(*data(32))
    metrics = [v.numpy() for v in model.metrics_variables]
    weights = model.get_weights()
    evaluator = Evaluator(model, data(64, 1), keras_pcp.Measuring(samples=None))
    expected = model.evaluate(*data(64, 1), verbose=0, return_dict=True)
    for v, value in zip(model.metrics_variables, metrics, strict=True):
        v.assign(value)
    found = evaluator.evaluate()
    assert found.metric == pytest.approx(expected["accuracy"])
    assert found.loss == pytest.approx(expected["loss"], rel=1e-5)
    with evaluator.reestimated():
        assert evaluator.evaluate() != found
    assert all(np.array_equal(v.numpy(), m) for v, m in zip(model.metrics_variables, metrics, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_macs": 1.5}, InvalidArgumentError, r"max_macs must be a float in \(0, 1\).*1.5"),
        ({"max_macs": 0.0}, InvalidArgumentError, "max_macs"),
        ({"max_macs": -3}, InvalidArgumentError, "max_macs"),
        ({"max_macs": None}, InvalidArgumentError, "no limit"),
        ({"criterion": "l7"}, InvalidArgumentError, "l7"),
        ({"begin": 0.7, "end": 0.3}, InvalidArgumentError, r"end must be a number in \(0.7, 1\]"),
        ({"schedule": lambda t: 0.5 * t}, InvalidArgumentError, "schedule"),
    ],
)
def test_bad_options_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        pruning(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_macs": 0.0001}, LimitError, r"macs cannot get below .*logits \(output of the model\)"),
        ({"max_params": 3}, LimitError, "params cannot get below"),
        ({"validation_data": (np.zeros((0, 8, 8, 1)), np.zeros(0))}, InvalidArgumentError, "empty"),
        ({"validation_data": tf.data.Dataset.from_tensors(1).take(0)}, InvalidArgumentError, "empty"),
        ({"validation_data": None}, InvalidArgumentError, "validation_data must be labelled samples.*got None"),
        ({"validation_data": np.zeros((4, 8, 8, 1))}, InvalidArgumentError, r"\(x, y\)"),
        ({"validation_data": (np.zeros((8, 8, 8, 1)), np.zeros(7))}, InvalidArgumentError, r"lengths: \[7, 8\]"),
        ({"validation_data": (np.zeros((8, 8, 8, 1)), np.full(8, 9))}, InvalidArgumentError, "labels|evaluated"),
        ({"validation_data": (np.zeros((8, 8, 8, 1)), np.zeros((8, 3)))}, InvalidArgumentError, "evaluated"),
        ({"validation_data": (np.zeros((8, 9, 9, 2)), np.zeros(8))}, InvalidArgumentError, "does not fit the inputs"),
        ({"frozen_layers": ["nowhere"]}, InvalidArgumentError, "nowhere"),
        ({"criterion": lambda g, s: np.full(g.num_channels, np.nan)}, InvalidArgumentError, "finite"),
        ({"criterion": lambda g, s: [1.0]}, InvalidArgumentError, "scores"),
    ],
)
def test_bad_input_is_refused_before_training_and_the_model_is_as_it_was(options, error, message):
    model = compiled()
    before = state_of(model)
    with pytest.raises(error, match=message):
        model.fit(*data(), epochs=4, verbose=0, callbacks=[pruning(**options)])
    assert same_state(before, state_of(model))
    assert int(model.optimizer.iterations) == 0


def test_a_model_that_has_diverged_is_told():
    model = compiled()
    model.layers[-1].bias.assign(np.full(model.layers[-1].bias.shape, np.nan))
    with pytest.raises(InvalidArgumentError, match="diverged"):
        model.fit(*data(), epochs=4, verbose=0, callbacks=[pruning()])


def test_a_fit_that_is_too_short_is_told_so_at_the_start():
    model = compiled()
    before = state_of(model)
    with pytest.raises(InvalidArgumentError, match=r"too short.*2 steps"):
        model.fit(*data(64), epochs=1, verbose=0, callbacks=[pruning(max_macs=0.1)])
    assert same_state(before, state_of(model))


def test_models_that_cannot_be_pruned_are_refused():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(4)

        def call(self, x):
            return self.dense(keras.ops.reshape(x, (-1, 64)))

    with pytest.raises(UnsupportedModelError, match="no functional graph"):
        compiled(Subclassed()).fit(*data(), epochs=4, verbose=0, callbacks=[pruning()])
    i = keras.Input((8, 8, 1))
    unknown = keras.Model(i, L.Dense(4)(L.Flatten()(Odd(name="odd")(L.Conv2D(4, 3)(i)))))
    with pytest.raises(UnsupportedModelError, match="'odd' \\(Odd\\)"):
        compiled(unknown).fit(*data(), epochs=4, verbose=0, callbacks=[pruning()])
    with pytest.raises(ValueError, match="compile"):
        network().fit(*data(), verbose=0, callbacks=[pruning()])


@pytest.mark.slow
def test_a_loss_of_a_model_s_own_need_not_know_training():
    plain = network()
    model = compiled(WithoutTraining(plain.input, plain.output))
    full = keras_pcp.count_cost(keras_pcp.build_graph(model)).macs
    model.fit(*data(), epochs=4, verbose=0, callbacks=[pruning(criterion="taylor")])
    assert keras_pcp.count_cost(keras_pcp.build_graph(model)).macs <= 0.5 * full


def test_channels_first_is_refused():
    i = keras.Input((1, 8, 8))
    x = L.Conv2D(4, 3, data_format="channels_first")(i)
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D(data_format="channels_first")(x)))
    with pytest.raises(UnsupportedModelError, match="channels_first"):
        keras_pcp.build_graph(model)


def test_a_failure_in_mid_round_leaves_the_model_whole_and_usable():
    model = compiled()
    calls = []

    def fails_later(group, statistics):
        calls.append(group.name)
        if len(calls) > 14:
            raise RuntimeError("on purpose")
        return np.arange(group.num_channels)

    callback = pruning(criterion=fails_later)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.fit(*data(), epochs=4, verbose=0, callbacks=[callback])
    graph = keras_pcp.build_graph(model)
    x = data()[0][:4]
    copy = keras_pcp.prune_model(model, graph, keras_pcp.Selection())
    assert np.array_equal(copy(x), model(x))
    assert not any((w == 0).all(axis=tuple(range(w.ndim - 1))).any() for w in model.get_weights() if w.ndim == 4)
    model.fit(*data(), verbose=0)


@pytest.mark.slow
def test_another_fit_with_the_same_callback_goes_on_to_the_same_limits():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if callback.report.shrinks:
                self.model.stop_training = True

    model = compiled()
    full = keras_pcp.count_cost(model).macs
    callback = pruning(max_macs=0.3)
    with pytest.warns(UserWarning, match="Call fit again with this callback"):
        model.fit(*data(), epochs=4, verbose=0, callbacks=[callback, Stop()])
    between = keras_pcp.count_cost(model).macs
    assert 0.3 * full < between < full
    model.fit(*data(), epochs=4, verbose=0, callbacks=[callback])
    after = keras_pcp.count_cost(model).macs
    assert 0.2 * full < after <= 0.3 * full
    assert callback.report.reached
    assert callback.report.limits == {"macs": int(0.3 * full)}
    model.fit(*data(), epochs=1, steps_per_epoch=1, verbose=0, callbacks=[callback])  # nothing is left to do
    assert keras_pcp.count_cost(model).macs == after
    other = compiled(network(8))
    other.fit(*data(), epochs=4, verbose=0, callbacks=[callback])
    assert callback.report.limits["macs"] == pytest.approx(0.3 * callback.report.before["macs"])


def test_stopping_before_the_limit_warns():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.warns(UserWarning, match="before pruning reached"):
        compiled().fit(*data(), epochs=20, verbose=0, callbacks=[pruning(), Stop()])


@pytest.mark.slow
def test_where_data_has_no_length_others_never_take_a_pruned_model_for_what_was_measured(tmp_path):
    """A best model that is kept or restored has the loss that was measured for it."""
    x, y = data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda a, b: True).batch(32)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=100, restore_best_weights=True)
    file = tmp_path / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(file, monitor="val_loss", save_best_only=True)
    callback = pruning(max_macs=0.3, begin=0.3, end=0.8, schedule=lambda t: t**3)
    model = compiled()
    model.fit(batches, epochs=3, verbose=0)
    model.compile(keras.optimizers.SGD(1e-5), model.loss, metrics=["accuracy"])  # too slow to recover
    history = model.fit(
        batches, epochs=6, validation_data=(x, y), verbose=0, callbacks=[callback, stopping, checkpoint]
    )
    assert callback.report.reached
    after = keras_pcp.count_cost(model).macs
    best = min(v for v, macs in zip(history.history["val_loss"], history.history["macs"], strict=True) if macs == after)
    for kept in (model, keras.models.load_model(file)):
        assert kept.evaluate(x, y, verbose=0)[0] == pytest.approx(best, abs=1e-4)


@pytest.mark.slow
def test_steps_in_one_execution_are_counted_once():
    x, y = data(320)
    model = compiled(steps_per_execution=8)
    callback = pruning(begin=0.1, end=0.6, schedule=keras_pcp.schedules.linear)
    model.fit(x, y, batch_size=32, epochs=10, verbose=0, callbacks=[callback])  # 10 steps an epoch: 8 and 2
    assert callback.report.shrinks == [10, 38]  # due at 10 and 35, the middle of the phase


def test_an_execution_of_the_whole_training_leaves_no_place_for_pruning():
    model = compiled(steps_per_execution=64)
    with pytest.raises(InvalidArgumentError, match="64 of its 8 steps at a time"):
        model.fit(*data(), batch_size=32, epochs=1, verbose=0, callbacks=[pruning(begin=0.1, end=0.9)])


def test_costs_that_are_unknown_are_null_in_the_report(tmp_path):
    i = keras.Input((None, None, 1))
    hidden = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(i))
    model = compiled(keras.Model(i, L.Dense(4)(hidden)))
    callback = pruning(max_macs=None, max_params=0.6)
    model.fit(*data(), epochs=2, verbose=0, callbacks=[callback])
    assert callback.report.to_json(tmp_path / "report.json")["before"]["macs"] is None
    assert "NaN" not in (tmp_path / "report.json").read_text()

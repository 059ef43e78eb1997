"""What pruning goes by: the loss, metrics, several of them, a function, or a `test_step`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from runs import round_to, run_of

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.fit.evaluator import Evaluator
from keras_pcp.fit.metric import Measuring, Output, direction

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)).astype("float32")
LABELS = (X[:, :1] > 0).astype("float32")
SIZES = X[:, 1:2] * 3


def heads(cls=keras.Model, **options):
    """A classifier and a regression on the same features."""
    keras.utils.set_random_seed(0)
    i = keras.Input((6,))
    hidden = L.Dense(8, activation="relu", name="hidden")(i)
    outputs = [L.Dense(1, activation="sigmoid", name="label")(hidden), L.Dense(1, name="size")(hidden)]
    model = cls(i, outputs)
    model.compile(
        "sgd",
        ["binary_crossentropy", "mse"],
        **({"metrics": [["accuracy"], ["mae"]]} | options),
    )
    return model


def single(cls=keras.Model, **options):
    keras.utils.set_random_seed(0)
    i = keras.Input((6,))
    model = cls(i, L.Dense(1)(L.Dense(8, activation="relu", name="hidden")(i)))
    model.compile("sgd", "mse", **({"metrics": ["mae"]} | options))
    return model


def evaluator(model, monitor=None, mode="auto", weight=None):
    data = (X, SIZES) if len(model.outputs) == 1 else (X, [LABELS, SIZES])
    return Evaluator(
        model, data if weight is None else (*data, weight), Measuring(samples=None, monitor=monitor, mode=mode)
    )


def weights(model, monitor=None, mode="auto", weight=None):
    return dict(evaluator(model, monitor, mode, weight).measure.weights)


def test_metrics_of_one_head_do_not_speak_for_the_other_so_the_default_is_the_loss():
    found = evaluator(heads())
    assert dict(found.measure.weights) == {"loss": -1.0}
    assert found.measure.text == "loss (lower is better), since output 'size' has no metric for which higher is better"
    assert found.evaluate().metric == pytest.approx(-found.evaluate().loss)


def test_the_default_is_the_mean_of_the_metrics_if_each_trained_output_has_one():
    both = heads(metrics=[["accuracy"], [keras.metrics.R2Score(name="fit")]])
    assert weights(both) == {"label_accuracy": 0.5, "size_fit": 0.5}
    untrained = heads(loss_weights=[1.0, 0.0])
    assert weights(untrained) == {"label_accuracy": 1.0}
    assert weights(heads(), weight=[np.ones(48), np.zeros(48)]) == {"label_accuracy": 1.0}
    rare = np.zeros(48)
    rare[45] = 1.0  # few samples with a label for an output are enough
    assert weights(heads(), weight=[np.ones(48), rare]) == {"loss": -1.0}
    assert weights(single()) == {"loss": -1.0}
    assert weights(single(metrics=[keras.metrics.CosineSimilarity(name="angle")])) == {"angle": 1.0}


def test_a_monitor_is_named_as_evaluate_names_it_and_has_the_value_that_evaluate_gives():
    model = heads()
    expected = model.evaluate(X, [LABELS, SIZES], batch_size=48, verbose=0, return_dict=True)
    for name, value in expected.items():
        lower = name != "label_accuracy"
        for monitor in (name, f"val_{name}"):
            found = evaluator(model, monitor)
            assert found.measure.text == f"{name} ({'lower' if lower else 'higher'} is better)"
            assert found.evaluate().metric == pytest.approx(-value if lower else value, rel=1e-5)


def test_several_metrics_are_added_with_their_weights_and_signs():
    model = heads()
    expected = model.evaluate(X, [LABELS, SIZES], batch_size=48, verbose=0, return_dict=True)
    found = evaluator(model, {"label_accuracy": 2, "val_size_mae": 0.5})
    assert found.measure.text == "2 * label_accuracy - 0.5 * size_mae (higher is better)"
    value = 2 * expected["label_accuracy"] - 0.5 * expected["size_mae"]
    assert found.evaluate().metric == pytest.approx(value, rel=1e-5)


def test_racing_measures_the_same_as_a_whole_evaluation():
    model = heads()
    for monitor in ("size_mae", "size_loss", {"label_accuracy": 1, "size_mae": 0.1}):
        found = evaluator(model, monitor)
        outputs = found.model.predict_on_batch(found.x)
        chunks = [found.judge_chunks([[o[found.samples(p)] for o in outputs]], p)[0] for p in found.parts]
        mean = np.concatenate(chunks).mean(axis=0)
        whole = found.evaluate()
        assert mean == pytest.approx([whole.metric, whole.loss], rel=1e-5)


def test_mode_says_whether_higher_is_better_where_nothing_else_does():
    def spread(y, predicted):
        return keras.ops.abs(y - predicted)

    model = single(metrics=[spread])
    with pytest.raises(InvalidArgumentError, match=r"whether higher is better for 'spread'; give mode='max'"):
        weights(model, "spread")
    assert weights(model, "spread", "min") == {"spread": -1.0}
    assert weights(model, "spread", "max") == {"spread": 1.0}
    assert weights(single(), "mae") == {"mae": -1.0}
    assert weights(single(), "mae", "max") == {"mae": 1.0}


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("accuracy", (), "up"),
        ("sparse_top_k_categorical_accuracy", (), "up"),
        ("mean_io_u", (), "up"),
        ("auc_1", (), "up"),
        ("f1_score", (), "up"),
        ("loss", (), "down"),
        ("mae", (), "down"),
        ("score", (), None),
        ("layer2_mae", ("layer2", "acc"), "down"),
        ("accent_loss", ("accent", "acc"), "down"),
        ("acc_mae", ("accent", "acc"), "down"),
        ("acc_accuracy", ("accent", "acc"), "up"),
    ],
)
def test_the_direction_of_a_metric_without_one_is_read_from_its_own_name(name, names, expected):
    assert direction(name, keras.Sequential(), [Output([n]) for n in names]) == expected


def test_an_unknown_monitor_is_refused_before_training_with_the_names_there_are():
    model = single()
    before = model.get_weights()
    callback = keras_pcp.ProgressivePruning(
        max_params=0.5, validation_data=(X, SIZES), measuring=Measuring(monitor="val_auc")
    )
    with pytest.raises(InvalidArgumentError, match=r"monitor .val_auc. is not among .* gives: (loss, mae|mae, loss)"):
        model.fit(X, SIZES, epochs=4, verbose=0, callbacks=[callback])
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": 3}, "monitor must be"),
        ({"monitor": {}}, "weight above 0"),
        ({"mode": "up"}, "mode must be"),
        ({"monitor": {"loss": -1.0}}, "weight above 0"),
        ({"mode": "max"}, "needs monitor="),
    ],
)
def test_bad_monitors_are_refused_at_once(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        keras_pcp.Measuring(**options)


class Pairs(keras.Model):
    """Learns that neighbours in a batch belong together; its compiled loss on (x, y) is not what it is trained for."""

    def train_step(self, data):
        x = data[0]
        with tf.GradientTape() as tape:
            loss = self.apart(x)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"apart": loss}

    def apart(self, x):
        return tf.reduce_mean(tf.square(self(x[::2]) - self(x[1::2])))


class PairsWithTest(Pairs):
    def test_step(self, data):
        self.trainable_variables[0].assign(0 * self.trainable_variables[0])
        return {"apart": self.apart(data[0])}


def test_a_model_with_its_own_train_step_is_not_judged_by_a_loss_that_may_mean_nothing():
    model = single(Pairs)
    before = model.get_weights()
    callback = keras_pcp.ProgressivePruning(max_params=0.5, validation_data=(X, SIZES))
    with pytest.raises(InvalidArgumentError, match=r"own train_step.*monitor='loss'.*\(mae\).*own test_step"):
        model.fit(X, SIZES, epochs=4, verbose=0, callbacks=[callback])
    assert all(map(np.array_equal, before, model.get_weights()))
    assert weights(model, "loss") == {"loss": -1.0}


def test_a_model_with_its_own_test_step_is_evaluated_by_it_and_is_as_before():
    model = single(PairsWithTest, metrics=None)
    before = model.get_weights()
    found = evaluator(model, "apart", "min")
    assert found.evaluate().metric == 0.0  # as the step sets the kernel that it reads to 0
    assert all(map(np.array_equal, before, model.get_weights()))
    assert found.parts == []
    with pytest.raises(InvalidArgumentError, match="gives no 'loss', only apart"):
        weights(model)


class First(keras.Model):
    def test_step(self, data):
        return {"first": tf.reduce_mean(data[0][:, 0])}


def test_what_a_test_step_gives_for_single_batches_is_averaged_over_all_of_them(monkeypatch):
    monkeypatch.setattr("keras_pcp.fit.evaluator._BATCH", 20)  # 48 samples: 20, 20 and 8
    found = evaluator(single(First, metrics=None), "first", "max").evaluate()
    assert found.metric == pytest.approx(float(X[:, 0].mean()), abs=1e-6)


def test_a_function_takes_the_place_of_metrics_and_leaves_the_model_as_it_was():
    seen = []

    def evaluate(model):
        seen.append(model.get_layer("hidden").kernel.shape)
        result = model.evaluate(X, SIZES, verbose=0, return_dict=True)["mae"]
        model.layers[-1].bias.assign([9.0])
        return result

    model = single(Pairs)
    model.train_on_batch(X, SIZES)
    before = [v.numpy() for v in [*model.variables, *model.metrics_variables]]
    run = run_of(model, (X, SIZES), measuring=Measuring(monitor=evaluate, mode="min"), max_params=0.5)
    expected = -float(np.abs(model.predict(X, verbose=0) - SIZES).mean())
    assert run.seen.samples.measure.text.endswith("evaluate (lower is better)")
    round_to(run, 1.0)
    latest = run.rounds[0]
    assert (latest.before.metric, latest.before.loss) == pytest.approx((expected, -expected), rel=1e-5)
    assert all(a.share == 1.0 for a in latest.attempts)
    assert set(seen) == {(6, 8)}
    after = [v.numpy() for v in [*model.variables, *model.metrics_variables]]
    assert all(map(np.array_equal, before, after))
    with pytest.raises(InvalidArgumentError, match=r"failed: ZeroDivisionError"):
        evaluator(model, lambda model: 1 / 0).check()
    with pytest.raises(InvalidArgumentError, match=r"must return one number, got dict"):
        evaluator(model, lambda model: {"mae": 1.0}).check()


def test_what_was_taken_is_said_when_fit_starts_and_in_the_report(capsys):
    model = heads()
    callback = keras_pcp.ProgressivePruning(
        max_params=0.6, validation_data=(X, [LABELS, SIZES]), measuring=Measuring(monitor="val_size_mae")
    )
    model.fit(X, [LABELS, SIZES], batch_size=16, epochs=3, verbose=2, callbacks=[callback])
    assert "pruning compares attempts by size_mae (lower is better)" in capsys.readouterr().out
    assert callback.report.reached
    assert "attempts compared by size_mae (lower is better)" in str(callback.report)
    assert callback.report.to_json()["monitor"] == "size_mae (lower is better)"
    assert callback.report.rounds[0].before.metric < 0


def test_a_checkpoint_of_a_search_belongs_to_its_monitor(tmp_path):
    model, options = single(), {"max_params": 0.6, "validation_data": (X, SIZES), "verbose": False}
    keras_pcp.search_widths(model, measuring=Measuring(monitor="mae"), checkpoint=tmp_path / "s.json", **options)
    with pytest.raises(InvalidArgumentError, match="its monitor differ"):
        keras_pcp.search_widths(model, checkpoint=tmp_path / "s.json", **options)

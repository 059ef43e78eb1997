"""What a `fit` with pruning checks before it begins, and what it does where training has diverged."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, NotFiniteError
from keras_pcp.support.data import take_samples
from keras_pcp.support.internals import list_that_calls

L = keras.layers
X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :1]
# Weights of the model below: 6 * 16 + 16 and 16 + 1 = 129. Each of the 16 channels costs 8.


def compiled():
    keras.utils.set_random_seed(0)
    i = keras.Input((6,))
    model = keras.Model(i, L.Dense(1, name="out")(L.Dense(16, activation="relu", name="hidden")(i)))
    model.compile("sgd", "mse")
    return model


def pruning(**options):
    strategy = keras_pcp.strategies.Progressive(step=8, groups_per_round=1, attempts="exact")
    options = {"max_params": 0.5, "validation_data": (X, Y), "strategy": strategy, "end": 1.0} | options
    return keras_pcp.ProgressivePruning(**options)


def fit(model, *callbacks, epochs=2):
    return model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0, callbacks=list(callbacks))


def refused(model, message, *callbacks):
    before = model.get_weights()
    with pytest.raises(InvalidArgumentError, match=message):
        fit(model, *callbacks)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert int(model.optimizer.iterations) == 0 or model.optimizer.iterations == 8


def test_a_script_that_goes_on_from_a_pruned_checkpoint_is_warned_of_its_fraction(tmp_path):
    model = compiled()
    fit(model, pruning(), keras.callbacks.ModelCheckpoint(tmp_path / "m.keras"))
    assert model.count_params() == 57  # 16 channels less 9
    loaded = keras.models.load_model(tmp_path / "m.keras")
    with pytest.warns(
        UserWarning,
        match=r"trained before \(8 steps\).*max_params=0.5.*model as it is now, 57 params.*max_params=28 is",
    ) as caught:
        fit(loaded, pruning())
    assert len(caught) == 1
    again = keras.models.load_model(tmp_path / "m.keras")
    callback = pruning(max_params=64)
    fit(again, callback)
    assert again.count_params() == 57
    assert callback.report.reached


def test_a_fraction_of_a_model_that_was_pruned_in_this_process_is_refused_and_ints_are_offered():
    model = compiled()
    first = pruning()
    fit(model, first)
    refused(
        model, r"pruned before.*max_params=0.4.*max_params=22 for .* now, max_params=51 for", pruning(max_params=0.4)
    )
    fit(model, first)  # has its own absolute limits
    callback = pruning(max_params=51)
    fit(model, callback)
    assert model.count_params() == 49
    assert callback.report.reached


def test_two_pruning_callbacks_in_one_fit_are_refused_before_the_first_step():
    refused(compiled(), "this fit has 2 pruning callbacks", pruning(), pruning(max_params=0.7))
    twice = pruning()
    refused(compiled(), "this fit has 2 pruning callbacks", twice, twice)


@pytest.mark.parametrize("kind", ["backup", "weights"])
def test_callbacks_that_save_weights_only_are_warned_of_before_training(kind, tmp_path):
    if kind == "backup":
        other, name = keras.callbacks.BackupAndRestore(tmp_path), "BackupAndRestore in"
    else:
        other = keras.callbacks.ModelCheckpoint(tmp_path / "m.weights.h5", save_weights_only=True)
        name = r"ModelCheckpoint\(save_weights_only=True\) in"
    model = compiled()
    steps = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            steps.append([str(w.message) for w in caught])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, pruning(), other, Watch())
    [message] = steps[0]
    assert message.startswith(name.replace("\\", ""))
    assert "load_model, and give limits as ints: max_params=64" in message


def test_the_callbacks_of_the_list_that_calls_one_are_those_of_the_fit_that_runs_now():
    stale = keras.callbacks.History()
    found = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            found.append(list_that_calls(self))

    watch, other = Watch(), keras.callbacks.TerminateOnNaN()
    left = keras.callbacks.CallbackList([stale, watch], model=compiled(), epochs=1)
    fit(compiled(), watch, other, epochs=1)
    assert left.callbacks == [stale, watch]
    assert other in found[0]
    assert stale not in found[0]
    assert watch in found[0]
    assert list_that_calls(keras.callbacks.Callback()) == []


class Poison(keras.callbacks.Callback):
    """Makes weights NaN after one step, as a diverged training does, and finite again after another."""

    def __init__(self, at, healed=None):
        super().__init__()
        self.at, self.healed, self.step = at, healed, 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        kernel = self.model.get_layer("out").kernel
        if self.step == self.at:
            self.kept = self.model.get_weights()
            kernel.assign(np.full(kernel.shape, np.nan))
        elif self.step == self.healed:
            self.model.set_weights(self.kept)


def test_where_training_diverges_nothing_is_pruned_and_terminate_on_nan_stops_quietly(capsys):
    model, callback = compiled(), pruning(begin=0.25)
    with pytest.warns(UserWarning, match=r"training ended at step 3.*diverged.*from step 2 on.*layer 'out'.*Lower"):
        fit(model, Poison(2), callback, keras.callbacks.TerminateOnNaN())
    assert model.count_params() == 129
    assert callback.report.diverged == 2
    assert callback.report.to_json()["diverged"] == 2
    assert "pruning stopped at step 2, because training had diverged" in str(callback.report)
    assert "Batch 2: Invalid loss" in capsys.readouterr().out


def test_weights_that_become_finite_again_are_pruned_then():
    model, callback = compiled(), pruning(begin=0.25)
    fit(model, Poison(2, healed=4), callback)
    assert model.count_params() == 57
    assert callback.report.diverged is None
    assert callback.report.shrinks[0] >= 4


def test_results_that_are_not_finite_put_pruning_off_too():
    model, calls = compiled(), []

    def evaluate(model):
        calls.append(1)
        return 1.0 if len(calls) == 1 else np.nan

    callback = pruning(measuring=keras_pcp.Measuring(monitor=evaluate))
    with pytest.warns(UserWarning, match="diverged.*evaluate .* nan"):
        fit(model, callback)
    assert model.count_params() == 129


def test_scores_of_weights_that_are_not_finite_name_the_layer_and_bad_criteria_their_name():
    model = compiled()
    graph = keras_pcp.build_graph(model)

    def broken(group, statistics):
        return np.full(group.num_channels, np.nan)

    with pytest.raises(InvalidArgumentError, match="scores of criterion 'broken' must be 16 finite numbers"):
        keras_pcp.score_channels(model, graph, broken)
    model.get_layer("hidden").bias.assign(np.full(16, np.nan))
    with pytest.raises(NotFiniteError, match=r"weights of layer 'hidden' .* are NaN"):
        keras_pcp.score_channels(model, graph, broken)


def test_validation_data_without_an_end_is_refused_where_all_of_it_is_asked_for(monkeypatch):
    endless = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat()
    measuring = keras_pcp.Measuring(samples=None)
    refused(
        compiled(), "validation_data is a dataset without an end", pruning(validation_data=endless, measuring=measuring)
    )
    assert len(take_samples(endless, 32, 0)[0]) == 32
    monkeypatch.setattr("keras_pcp.support.data._MOST_SAMPLES", 100)
    with pytest.raises(InvalidArgumentError, match="data has not ended after 128 samples"):
        take_samples(((X, Y) for _ in itertools.count()), None, 0)
    assert len(take_samples(endless.take(10), None, 0)[0]) == 160

    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            return X, Y

    assert len(take_samples(Sequence(), None, 0)[0]) == 192

"""Distillation from the unpruned model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_fits import compiled, data

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.fit.run import Run

L = keras.layers
if not hasattr(keras, "distillation"):
    pytest.skip("keras.distillation came with Keras 3.12", allow_module_level=True)


def test_the_unpruned_model_teaches_and_leaves_no_trace():
    model = compiled()
    model.fit(*data(), epochs=1, verbose=0)
    teacher = keras.models.clone_model(model)
    teacher.set_weights(model.get_weights())
    x, y = data(32, 2)
    weights, logits = len(model.weights), teacher(x)
    loss = keras.distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence())
    distillation = keras_pcp.Distillation(weight=0.3, loss=loss)
    with distillation.teaching(model):
        model.set_weights([w * 0.9 for w in model.get_weights()])
        predicted = model(x)
        plain = model.compute_loss(x, y, predicted, training=False)
        taught = model.compute_loss(x, y, predicted, training=True)

    def softmax(z):
        e = np.exp((z - np.max(z, axis=1, keepdims=True)) / 2.0)
        return e / e.sum(axis=1, keepdims=True)

    p, q = softmax(np.asarray(logits)), softmax(np.asarray(predicted))
    expected = 0.7 * float(plain) + 0.3 * 4 * float(np.mean(np.sum(p * np.log(p / q), axis=1)))
    assert float(taught) == pytest.approx(expected, rel=1e-4)
    assert "compute_loss" not in vars(model)
    assert len(model.weights) == weights


@pytest.mark.slow
def test_distillation_in_fit_changes_what_is_learned():
    found = []
    for distillation in (None, keras_pcp.Distillation(0.9)):
        model = compiled()
        callback = keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=data(64, 1), distillation=distillation)
        history = model.fit(*data(), epochs=3, verbose=0, shuffle=False, callbacks=[callback])
        assert callback.report.reached
        assert "compute_loss" not in vars(model)
        found.append(history.history["loss"])
    assert not np.allclose(found[0], found[1], rtol=1e-3)


def test_a_fit_that_fails_leaves_no_teacher_behind(monkeypatch):
    model = compiled()
    callback = keras_pcp.ProgressivePruning(
        max_macs=0.5, validation_data=data(64, 1), distillation=keras_pcp.Distillation()
    )

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(*data(), epochs=3, verbose=0, callbacks=[callback, Interrupt()])
    assert "compute_loss" in vars(model)  # Keras calls no callback then
    callback.on_train_end()
    assert "compute_loss" not in vars(model)

    def fail(self, at, fresh):
        raise RuntimeError("attempts failed")

    monkeypatch.setattr(Run, "ask", fail)
    with pytest.raises(RuntimeError, match="attempts failed"):
        model.fit(*data(), epochs=3, verbose=0, callbacks=[callback])
    assert "compute_loss" not in vars(model)


@pytest.mark.parametrize(("classes", "activation"), [(1, None), (4, "softmax"), (1, "sigmoid")])
def test_logits_distillation_refuses_outputs_that_are_no_logits(classes, activation):
    i = keras.Input((8, 8, 1))
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3)(i))
    model = keras.Model(i, L.Dense(classes, activation=activation)(x))
    model.compile(loss="mse")
    with (
        pytest.raises(InvalidArgumentError, match="logits of several classes"),
        keras_pcp.Distillation().teaching(model),
    ):
        pass


def test_several_outputs_are_distilled_one_by_one():
    i = keras.Input((6,))
    x = L.Dense(5)(i)
    model = keras.Model(i, {"a": L.Dense(3, name="a")(x), "b": L.Dense(4, name="b")(x)})
    model.compile(loss={"a": "mse", "b": "mse"})
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    y = {"a": np.zeros((8, 3)), "b": np.zeros((8, 4))}
    loss = keras.distillation.FeatureDistillation(loss="mse")
    with keras_pcp.Distillation(1.0, loss).teaching(model):
        teacher = {k: np.asarray(v) for k, v in model(x).items()}
        model.set_weights([w * 0.5 for w in model.get_weights()])
        learned = model(x)
        taught = float(model.compute_loss(x, y, learned, training=True))
    assert taught == pytest.approx(sum(np.mean((teacher[k] - np.asarray(learned[k])) ** 2) for k in "ab"), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras_pcp.Distillation(weight=0.0), "weight"),
        (lambda: keras_pcp.Distillation(weight=1.5), "weight"),
        (
            lambda: keras_pcp.Distillation(
                loss=keras.distillation.FeatureDistillation(teacher_layer_name="a", student_layer_name="a")
            ),
            "hidden layers",
        ),
    ],
)
def test_bad_distillation_is_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_old_keras_is_told_what_is_missing(monkeypatch):
    monkeypatch.delattr(keras, "distillation")
    with pytest.raises(PruningError, match=r"Keras 3\.12"):
        keras_pcp.Distillation()


class WithoutInputs(keras.Model):
    """Its train_step gives compute_loss no inputs."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


class WithoutComputeLoss(keras.Model):
    """Its train_step has a loss of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, self(x, training=True), True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def test_a_train_step_that_leaves_no_room_for_a_teacher_is_told():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)), np.arange(64) % 2

    def fit(cls):
        i = keras.Input((8,))
        model = cls(i, keras.layers.Dense(2)(keras.layers.Dense(32)(i)))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        callback = keras_pcp.ProgressivePruning(
            max_macs=0.5,
            validation_data=(x, y),
            distillation=keras_pcp.Distillation(0.5),
            measuring=keras_pcp.Measuring(monitor="loss"),
        )
        model.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=[callback])

    with pytest.raises(InvalidArgumentError, match="calls compute_loss without x"):
        fit(WithoutInputs)
    with pytest.warns(UserWarning, match="had no effect"):
        fit(WithoutComputeLoss)


class Interrupt(keras.callbacks.Callback):
    """Interrupts a fit in its second epoch, in a place of one's choice."""

    def __init__(self, place):
        super().__init__()
        self.epoch = 0
        setattr(self, place, self.interrupt)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def interrupt(self, number, logs=None):
        if self.epoch == 1:
            raise KeyboardInterrupt


def dense_data(samples=64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, 8)).astype("float32"), rng.integers(0, 3, samples)


def dense_model(eagerly=True):
    keras.utils.set_random_seed(0)
    i = keras.Input((8,))
    model = keras.Model(i, L.Dense(3)(L.Dense(16, activation="relu")(i)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], run_eagerly=eagerly)
    return model


def dense_pruning():
    return keras_pcp.ProgressivePruning(
        max_macs=0.5, validation_data=dense_data(32, 1), distillation=keras_pcp.Distillation(0.9), begin=0.0, end=0.5
    )


def interrupted_fit(place="on_train_batch_end", eagerly=True):
    """A model whose fit with pruning was interrupted after it had shrunk."""
    model, callback = dense_model(eagerly), dense_pruning()
    with pytest.raises(KeyboardInterrupt):
        model.fit(*dense_data(), batch_size=16, epochs=2, verbose=0, callbacks=[callback, Interrupt(place)])
    assert callback.report.reached
    return model, callback  # which lives on, as it does in a notebook


@pytest.mark.parametrize(("place", "eagerly"), [("on_train_batch_begin", True), ("on_train_batch_end", False)])
def test_a_plain_fit_after_an_interrupted_one_trains_on_the_model_s_own_loss(place, eagerly, tmp_path):
    model, _callback = interrupted_fit(place, eagerly)
    model.save(tmp_path / "model.keras")
    never_taught = keras.models.load_model(tmp_path / "model.keras")
    fits = [m.fit(*dense_data(), epochs=2, verbose=0, shuffle=False) for m in (model, never_taught)]
    np.testing.assert_allclose(fits[0].history["loss"], fits[1].history["loss"], rtol=1e-5)
    assert not {"compute_loss", "make_train_function"} & set(vars(model))
    for a, b in zip(model.get_weights(), never_taught.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_single_batches_after_an_interrupted_fit_train_on_the_model_s_own_loss(tmp_path):
    model, _callback = interrupted_fit("on_train_batch_begin")
    model.save(tmp_path / "model.keras")
    never_taught = keras.models.load_model(tmp_path / "model.keras")
    found = []
    for m in (model, never_taught):
        m.reset_metrics()
        found.append([m.train_on_batch(*dense_data(16, 3))[0] for _ in range(3)])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert not {"compute_loss", "make_train_function"} & set(vars(model))


def test_a_loss_asked_for_after_an_interrupted_fit_is_the_model_s_own():
    model, _callback = interrupted_fit()
    x, y = dense_data(16, 3)
    predicted = model(x, training=True)
    assert float(model.compute_loss(x, y, predicted)) == pytest.approx(float(model.loss(y, predicted)), rel=1e-5)
    assert "compute_loss" not in vars(model)


def test_a_single_batch_that_another_callback_trains_on_does_not_end_distillation():
    model, found = dense_model(), []

    class TrainsOn(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.train_on_batch(*dense_data(16, 4))
            found.append("compute_loss" in vars(self.model))

    model.fit(*dense_data(), batch_size=16, epochs=2, verbose=0, callbacks=[dense_pruning(), TrainsOn()])
    assert len(found) == 8
    assert all(found)
    assert "compute_loss" not in vars(model)

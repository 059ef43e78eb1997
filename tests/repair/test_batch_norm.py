"""Re-estimated statistics of batch normalization: against sums by hand; nothing else changes."""

import keras
import numpy as np
import pytest

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.repair.batch_norm import BatchStatistics

L = keras.layers


def network() -> keras.Model:
    """A dense layer between two batch normalizations, the second in a nested model."""
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="second"), L.Dropout(0.5, seed=1)])
    x = keras.Input((3,))
    y = L.Dense(4, name="dense")(L.BatchNormalization(name="first", epsilon=1e-3)(x))
    return keras.Model(x, inner(y))


def batches(x, size):
    return [x[i : i + size] for i in range(0, len(x) // size * size, size)]


def test_the_statistics_are_means_over_batches_of_those_of_each_batch():
    model, x = network(), np.random.default_rng(0).normal(2, 3, (23, 3)).astype("float32")
    assert keras_pcp.reestimate_batch_norm(model, x, batch_size=5) == ["first", "second"]
    kernel, bias = model.get_layer("dense").get_weights()
    means, variances = [], []
    for batch in batches(x, 5):
        read = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-3) @ kernel + bias
        means.append((batch.mean(0), read.mean(0)))
        variances.append((batch.var(0), read.var(0)))
    second = next(layer for layer in model.layers if isinstance(layer, keras.Sequential)).get_layer("second")
    for i, layer in enumerate((model.get_layer("first"), second)):
        np.testing.assert_allclose(layer.moving_mean, np.mean([m[i] for m in means], axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, np.mean([v[i] for v in variances], axis=0), rtol=1e-4)


def test_nothing_else_changes_and_layers_that_are_frozen_keep_theirs():
    x = keras.Input((3,))
    y = L.SpectralNormalization(L.Dense(4))(L.GaussianNoise(1.0, seed=3)(x))
    y = L.BatchNormalization(name="open", momentum=0.7)(y)
    model = keras.Model(x, L.BatchNormalization(name="frozen", trainable=False)(y))
    model.compile("adam", "mse")
    data = np.random.default_rng(0).normal(size=(16, 3))
    model.fit(data, np.zeros((16, 4)), verbose=0)

    def state():
        found = {
            v.path: v.numpy() for v in (*model.weights, *model.non_trainable_variables, *model.optimizer.variables)
        }
        return {k: v for k, v in found.items() if not k.startswith("open/moving")}

    before, moving = state(), model.get_layer("open").moving_mean.numpy()
    assert keras_pcp.reestimate_batch_norm(model, (data, np.zeros(16))) == ["open"]
    assert all(np.array_equal(value, before[path]) for path, value in state().items())
    assert model.get_layer("open").momentum == 0.7
    assert not np.allclose(model.get_layer("open").moving_mean, moving)


def test_a_model_without_batch_normalization_stays_as_it_is():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    before = model.get_weights()
    assert keras_pcp.reestimate_batch_norm(model, np.ones((4, 3))) == []
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_failure_leaves_everything_as_it_was():
    class Third(L.Layer):
        """Fails when it is called for the third time after it was built."""

        calls = -1

        def call(self, x):
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("third call")
            return x

    x = keras.Input((3,))
    model = keras.Model(x, Third()(L.BatchNormalization()(x)))
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="third call"):
        keras_pcp.reestimate_batch_norm(model, np.random.default_rng(0).normal(size=(12, 3)), batch_size=2)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_numbers_and_data_are_checked():
    model = network()
    for options in ({"samples": 0}, {"batch_size": 0}, {"batch_size": 2.0}, {"samples": True}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            keras_pcp.reestimate_batch_norm(model, np.ones((4, 3)), **options)
    with pytest.raises(InvalidArgumentError, match="empty"):
        keras_pcp.reestimate_batch_norm(model, np.ones((0, 3)))


def test_after_a_short_fit_the_model_computes_what_it_learned():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 1, (256, 3))
    y = (x[:, 0] > 5).astype(int)
    i = keras.Input((3,))
    h = L.BatchNormalization()(L.Dense(16)(i))
    model = keras.Model(i, L.Dense(2)(L.ReLU()(h)))
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    model.fit(x, y, batch_size=32, epochs=5, verbose=0)
    stale = model.evaluate(x, y, verbose=0)[1]
    keras_pcp.reestimate_batch_norm(model, x)
    assert stale < 0.8
    assert model.evaluate(x, y, verbose=0)[1] > 0.9


@pytest.mark.parametrize("compiling", [False, True])
def test_statistics_are_means_over_batches_and_calls(compiling):
    i = keras.Input((3,))
    norm = L.BatchNormalization()
    model = keras.Model(i, L.Add()([norm(i), norm(2 * i)]))
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    before = model.get_weights()
    statistics = BatchStatistics(model, compiling=compiling)
    found = {v.name: value for v, value in statistics.means(x, 4)}
    batches = x.reshape(3, 4, 3)
    np.testing.assert_allclose(found["moving_mean"], batches.mean(axis=1).mean(axis=0) * 1.5, atol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], batches.var(axis=1).mean(axis=0) * 2.5, rtol=1e-4)
    assert all(map(np.array_equal, before, model.get_weights()))
    if compiling:
        assert statistics.run.experimental_get_tracing_count() == 1


def test_layers_may_have_another_type():
    model = keras.Sequential([keras.Input((3,), dtype="float64"), L.BatchNormalization(dtype="float64", name="bn")])
    x = np.random.default_rng(0).normal(size=(8, 3))
    keras_pcp.reestimate_batch_norm(model, x, batch_size=8)
    np.testing.assert_allclose(model.get_layer("bn").moving_mean, x.mean(axis=0), atol=1e-6)

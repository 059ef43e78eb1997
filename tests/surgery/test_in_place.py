"""Shrinking in place: every object the user holds stays valid, and training goes on as a small model's would."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from zoo import ZOO, assert_close, build, each, inputs_for, outputs_of, random_selection

import keras_pcp
from keras_pcp.support import internals

OPTIMIZERS = {
    "sgd_momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam_amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "lion": lambda: keras.optimizers.Lion(0.001),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
}


def targets_for(model, seed=2):
    rng = np.random.default_rng(seed)
    found = [rng.normal(size=o.shape).astype("float32") for o in outputs_of(model, inputs_for(model, 8))]
    return found if len(found) > 1 else found[0]


def slices_by_hand(graph, selection, index, shape):
    """For each axis of a weight the positions that stay, worked out from the graph's slices alone."""
    stay = [set(range(d)) for d in shape]
    for group in graph:
        for s in group.slices:
            if s.weight == index:
                gone = s.positions[~selection.keep[group.name][s.channels]]
                stay[s.axis] -= set(gone.tolist())
    return [sorted(axis) for axis in stay]


@pytest.mark.parametrize("name", each(sorted(ZOO)))
def test_shrinking_in_place_gives_what_prune_model_gives(name):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    selection, x = random_selection(graph, 0), inputs_for(model)
    pruned = keras_pcp.prune_model(model, graph, selection)
    layers, variables = model.layers, model.weights
    keras_pcp.shrink(model, graph, selection)
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    assert all(a is b for a, b in zip(variables, model.weights, strict=True))
    assert model.count_params() == pruned.count_params()
    assert_close(outputs_of(model, x), outputs_of(pruned, x), 0)
    for a, b in zip(model.layers, pruned.layers, strict=True):
        assert {k: v for k, v in a.get_config().items() if k != "layers"} == {
            k: v for k, v in b.get_config().items() if k != "layers"
        }
    assert model.output_shape == pruned.output_shape
    assert [t.shape for t in keras.tree.flatten(model.outputs)] == [t.shape for t in pruned.outputs]


@pytest.mark.parametrize("name", each(sorted(ZOO)))
def test_a_model_shrunk_in_training_trains_on_like_a_small_model_with_sliced_slots(name):
    model = build(name)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = inputs_for(model, 8), targets_for(model)
    for _ in range(2):
        model.train_on_batch(x, y)
    graph = keras_pcp.build_graph(model)
    selection = random_selection(graph, 1)
    small = keras_pcp.prune_model(model, graph, selection)
    small.compile(keras.optimizers.Adam(0.01), "mse")
    small.optimizer.build(small.trainable_variables)
    by_path = {v.path: i for i, v in enumerate(model.weights)}
    pairs = list(zip(model.optimizer.variables, small.optimizer.variables, strict=True))
    expected = []
    slots_of = len(model.trainable_variables)
    slot_owners = [by_path[v.path] for v in model.trainable_variables]
    arrays = [p for p in pairs if len(p[0].shape) or p[0].path.endswith(("_momentum", "_velocity"))]
    assert len(arrays) == 2 * slots_of
    for old, new in pairs:
        value = old.numpy()
        for path, index in ((model.weights[i].path.replace("/", "_"), i) for i in slot_owners):
            if old.name in (f"{path}_momentum", f"{path}_velocity"):
                value = value[np.ix_(*slices_by_hand(graph, selection, index, value.shape))]
                break
        new.assign(value)
        expected.append(value)
    keras_pcp.shrink(model, graph, selection)
    for slot, value in zip(model.optimizer.variables, expected, strict=True):
        assert np.array_equal(slot.numpy(), value)
    if any("dropout" in layer.name for layer in model.layers):
        return  # the two models draw other random numbers
    model.reset_metrics()
    for _ in range(2):
        np.testing.assert_allclose(model.train_on_batch(x, y), small.train_on_batch(x, y), rtol=1e-4)
    for a, b in zip(model.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def residual(stem, inner, stages):
    """A residual network by hand, with the widths of its groups."""
    i = keras.Input((8, 8, 3))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(stem, 3, padding="same")(i)))
    for width, stage in zip(inner, stages, strict=True):
        y = keras.layers.Conv2D(width, 3, strides=2, padding="same")(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        y = keras.layers.BatchNormalization()(keras.layers.Conv2D(stage, 3, padding="same")(y))
        x = keras.layers.ReLU()(keras.layers.Add()([y, keras.layers.Conv2D(stage, 1, strides=2)(x)]))
    return keras.Model(i, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
def test_the_loss_curve_after_a_shrink_is_that_of_a_hand_built_small_model(optimizer):
    keras.utils.set_random_seed(0)
    model = residual(8, (8, 12), (8, 16))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(320, 8, 8, 3)).astype("float32"), rng.integers(0, 4, 320)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer](), loss)
    model.fit(x, y, batch_size=16, epochs=1, verbose=0, shuffle=False)
    graph = keras_pcp.build_graph(model)
    scores = keras_pcp.score_channels(model, graph)
    selection = keras_pcp.select_by_ratio(graph, scores, 0.5, scope="local")
    small = residual(4, (4, 6), (4, 8))
    small.compile(OPTIMIZERS[optimizer](), loss)
    small.optimizer.build(small.trainable_variables)
    indices = [next(i for i, w in enumerate(model.weights) if w is v) for v in model.trainable_variables]
    for i, (full, target) in enumerate(zip(model.weights, small.weights, strict=True)):
        target.assign(full.numpy()[np.ix_(*slices_by_hand(graph, selection, i, full.shape))])
    scalars = len(model.optimizer.variables) - len(indices) * (2 if optimizer == "adam" else 1)
    for position, (full, target) in enumerate(zip(model.optimizer.variables, small.optimizer.variables, strict=True)):
        value = full.numpy()
        if position >= scalars:
            slot = position - scalars
            owner = indices[slot // 2 if _interleaved(model) else slot % len(indices)]
            value = value[np.ix_(*slices_by_hand(graph, selection, owner, value.shape))]
        target.assign(value)
    keras_pcp.shrink(model, graph, selection)
    curves = []
    for trained in (model, small):
        trained.reset_metrics()
        curves.append([float(trained.train_on_batch(x[i : i + 16], y[i : i + 16])) for i in range(0, 320, 16)])
        # train_on_batch reports a running mean, which is as strict
    assert len(curves[0]) == 20
    np.testing.assert_allclose(curves[0], curves[1], rtol=0, atol=1e-4)


def _interleaved(model):
    """True if the slots of one variable lie next to each other in `optimizer.variables`."""
    slots = [v for v in model.optimizer.variables if len(v.shape)]
    kinds = [v.name.rpartition("_")[2] for v in slots[:2]]
    return len(set(kinds)) == 2


@pytest.mark.parametrize(
    "optimizer",
    [
        n if n in ("adafactor", "adam", "ema", "loss_scale") else pytest.param(n, marks=pytest.mark.slow)
        for n in sorted(OPTIMIZERS)
    ],
)
def test_every_optimizer_goes_on_after_a_shrink(optimizer):
    model = build("residual")
    model.compile(OPTIMIZERS[optimizer](), "mse")
    x, y = inputs_for(model, 8), targets_for(model)
    for _ in range(3):
        model.train_on_batch(x, y)
    stepping = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    iterations = int(stepping.iterations)
    before = [v.numpy() for v in model.optimizer.variables]
    graph = keras_pcp.build_graph(model)
    selection = random_selection(graph, 1)
    keras_pcp.shrink(model, graph, selection)
    shapes = {tuple(v.shape) for v in model.trainable_variables}
    for slot, old in zip(model.optimizer.variables, before, strict=True):
        assert slot.shape == old.shape or slot.numpy().size < old.size
        if len(slot.shape) == 4:
            assert tuple(slot.shape) in shapes
    now = [float(np.asarray(model.train_on_batch(x, y))) for _ in range(6)]
    assert np.isfinite(now).all()
    assert now[-1] < now[0]
    assert int(stepping.iterations) > iterations


def test_adafactor_slots_lose_the_axes_of_their_own():
    model = build("residual")
    model.compile(keras.optimizers.Adafactor(0.01), "mse")
    model.train_on_batch(inputs_for(model, 8), targets_for(model))
    graph = keras_pcp.build_graph(model)
    selection = random_selection(graph, 1)
    index = next(i for i, w in enumerate(model.weights) if w.shape == (3, 3, 8, 8))
    stay = slices_by_hand(graph, selection, index, (3, 3, 8, 8))
    position = [v is model.weights[index] for v in model.trainable_variables].index(True)
    rows, columns = model.optimizer._r[position], model.optimizer._c[position]
    expected = rows.numpy()[..., stay[2]], columns.numpy()[..., stay[3]]
    keras_pcp.shrink(model, graph, selection)
    assert np.array_equal(rows.numpy(), expected[0])
    assert np.array_equal(columns.numpy(), expected[1])


def test_mixed_precision_goes_on_after_a_shrink():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build("residual")
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = inputs_for(model, 8), targets_for(model)
    model.train_on_batch(x, y)
    graph = keras_pcp.build_graph(model)
    keras_pcp.shrink(model, graph, random_selection(graph, 1))
    losses = [float(model.train_on_batch(x, y)) for _ in range(6)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_an_optimizer_that_cannot_follow_is_refused_and_nothing_changes():
    class Odd(keras.optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.extra = self.add_variable((5,), name="extra")

    model = build("residual")
    model.compile(Odd(0.1), "mse")
    model.train_on_batch(inputs_for(model, 8), targets_for(model))
    before = model.get_weights()
    graph = keras_pcp.build_graph(model)
    with pytest.raises(keras_pcp.errors.UnsupportedModelError, match="extra"):
        keras_pcp.shrink(model, graph, random_selection(graph, 0))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_failure_in_the_middle_of_a_shrink_leaves_the_model_whole(monkeypatch):
    model = build("residual")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = inputs_for(model, 8), targets_for(model)
    model.train_on_batch(x, y)
    graph = keras_pcp.build_graph(model)
    before, expected = model.get_weights(), outputs_of(model, x)
    config = model.get_config()

    def fail(models, journal):
        raise MemoryError("on purpose")

    monkeypatch.setattr(internals, "forget_traces", fail)
    with pytest.raises(MemoryError, match="on purpose"):
        keras_pcp.shrink(model, graph, random_selection(graph, 0))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.get_config() == config
    assert_close(outputs_of(model, x), expected, 0)
    model.train_on_batch(x, y)


def test_sub_models_made_before_give_the_new_width_after():
    model = build("plain_flatten")
    hidden = model.layers[4]
    from_input = keras.Model(model.input, hidden.output)
    to_output = keras.Model(hidden.output, model.output)
    new_input = keras.Input((8, 8, 3))
    wrapped = keras.Model(new_input, model(new_input))
    x = inputs_for(model)
    for m in (from_input, wrapped, model):
        m.predict(x, verbose=0)  # traces that would go on with the old weights
    graph = keras_pcp.build_graph(model)
    keras_pcp.shrink(model, graph, random_selection(graph, 0))
    features = from_input.predict(x, verbose=0)
    assert features.shape[-1] == from_input.output_shape[-1] == hidden.output.shape[-1] < 8
    expected = model.predict(x, verbose=0)
    assert_close([wrapped.predict(x, verbose=0)], [expected])
    assert_close([to_output.predict(features, verbose=0)], [expected])


def test_another_model_that_trains_the_same_layers_goes_on():
    model = build("plain_flatten")
    other = keras.Model(model.input, keras.layers.Dense(2)(model.layers[-1].output))
    x = inputs_for(model, 8)
    for m, width in ((model, 4), (other, 2)):
        m.compile(keras.optimizers.Adam(0.01), "mse")
        m.train_on_batch(x, np.zeros((8, width)))
    graph = keras_pcp.build_graph(model)
    keras_pcp.shrink(model, graph, random_selection(graph, 0))
    before = other.get_weights()
    other.train_on_batch(x, np.ones((8, 2)))
    assert all(v.shape == w.shape for v, w in zip(other.weights, before, strict=True))
    assert any((v.numpy() != w).any() for v, w in zip(model.trainable_variables, before, strict=False))


def test_a_nested_base_model_held_by_the_user_is_smaller_too():
    model = build("nested")
    base = model.get_layer("base")
    x = inputs_for(model)
    base.predict(x, verbose=0)
    graph = keras_pcp.build_graph(model)
    keras_pcp.shrink(model, graph, random_selection(graph, 0))
    assert base.predict(x, verbose=0).shape[1:] == base.output_shape[1:]
    assert base.output_shape[-1] == model.get_layer("neck").input_shape[-1] < 8


def test_the_shrunken_model_is_saved_and_loaded_where_keras_pcp_is_not_imported(tmp_path):
    model = build("nested")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = inputs_for(model, 8), targets_for(model)
    model.train_on_batch(x, y)
    graph = keras_pcp.build_graph(model)
    keras_pcp.shrink(model, graph, random_selection(graph, 0))
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y, expected=outputs_of(model, x)[0])
    loss = model.train_on_batch(x, y)
    code = (
        "import sys, keras, numpy as np; m = keras.models.load_model('model.keras'); d = np.load('data.npz')\n"
        "assert np.array_equal(m(d['x'], training=False), d['expected'])\n"
        "assert 'keras_pcp' not in sys.modules; print(float(m.train_on_batch(d['x'], d['y'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert reloaded.optimizer.iterations.numpy() == 2
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(float(loss), rel=0.3)


@pytest.mark.slow
def test_mirrored_strategy_on_two_logical_devices():
    code = """
import numpy as np, tensorflow as tf, keras, keras_pcp
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    i = keras.Input((8, 8, 1))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3)(i)))
    x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3)(x)))
    model = keras.Model(i, x)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 8, 8, 1)).astype("float32"), rng.integers(0, 2, 64)
model.fit(x, y, batch_size=16, verbose=0)
graph = keras_pcp.build_graph(model)
selection = keras_pcp.select_by_ratio(graph, keras_pcp.score_channels(model, graph), 0.5, scope="local")
expected = keras_pcp.prune_model(model, graph, selection).get_weights()  # statistics are averaged over the replicas
keras_pcp.shrink(model, graph, selection)
assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), expected))
model.fit(x, y, batch_size=16, verbose=0)
assert len(model.weights[0].value.values) == 2
pruning = keras_pcp.ProgressivePruning(max_macs=0.6, validation_data=(x, y))
model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning])
assert pruning.report.reached
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "done"


def test_an_unsupported_distribution_is_refused():
    model = build("residual")
    graph = keras_pcp.build_graph(model)

    class FakeStrategy(tf.distribute.MirroredStrategy):
        pass

    model._distribute_strategy = FakeStrategy(["CPU:0"])
    with pytest.raises(keras_pcp.errors.UnsupportedModelError, match="FakeStrategy"):
        keras_pcp.shrink(model, graph, random_selection(graph, 0))


def test_a_graph_of_another_model_is_refused():
    graph = keras_pcp.build_graph(build("residual"))
    with pytest.raises(keras_pcp.errors.InvalidArgumentError, match="build_graph"):
        keras_pcp.shrink(build("bottleneck"), graph, random_selection(graph, 0))


def two_optimizers(make_body, make_head):
    """A model whose own `train_step` trains body and head with an optimizer each, at rates of their own."""

    class TwoRates(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape(persistent=True) as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            body, head = self.trainable_variables[:-2], self.trainable_variables[-2:]
            self.body.apply(tape.gradient(loss, body), body)
            self.head.apply(tape.gradient(loss, head), head)
            return {"loss": loss}

    i = keras.Input((4,))
    x = keras.layers.Dense(6, activation="relu", name="first")(i)
    x = keras.layers.Dense(6, activation="relu", name="second")(x)
    model = TwoRates(i, keras.layers.Dense(2, name="last")(x))
    model.compile(loss="mse")
    model.body, model.head = make_body(), make_head()
    return model


def test_slots_of_every_optimizer_that_holds_a_weight_follow():
    keras.utils.set_random_seed(0)
    model = two_optimizers(
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 2)).astype("float32")
    model.fit(x, y, epochs=2, verbose=0)
    graph = keras_pcp.build_graph(model)
    keep = np.array([True, False, True, True, False, False])
    momentum = next(v for v in model.head.inner_optimizer.variables if v.shape == (6, 2))
    velocity = next(v for v in model.body.variables if "second_kernel_velocity" in v.path)
    expected = momentum.numpy()[keep], velocity.numpy()[keep][:, keep]
    keras_pcp.shrink(model, graph, keras_pcp.Selection({"first": keep, "second": keep}))
    assert np.array_equal(momentum.numpy(), expected[0])
    assert np.array_equal(velocity.numpy(), expected[1])
    before = model.get_weights()
    model.fit(x, y, verbose=0)
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


def test_an_optimizer_whose_weights_belong_to_two_models_goes_on_for_both():
    first, second = build("plain_flatten"), build("residual")
    optimizer = keras.optimizers.Adam(0.01)
    variables = [*first.trainable_variables, *second.trainable_variables]
    optimizer.build(variables)
    optimizer.apply([keras.ops.ones_like(v) for v in variables], variables)
    graph = keras_pcp.build_graph(first)
    keras_pcp.shrink(first, graph, random_selection(graph, 0))
    shapes = [tuple(v.shape) for v in variables]
    optimizer.apply([keras.ops.ones_like(v) for v in variables], variables)
    slots = [tuple(v.shape) for v in optimizer.variables if v.path.endswith("_momentum")]
    assert slots == shapes
    index = next(i for i, v in enumerate(variables) if v is second.trainable_variables[0])
    assert optimizer._get_variable_index(variables[index]) == index


class Odd(keras.optimizers.SGD):
    """It keeps an array of its own, of which nobody knows which channels it belongs to."""

    def build(self, variables):
        super().build(variables)
        self.extra = self.add_variable((5,), name="extra")


def test_a_second_optimizer_that_cannot_follow_is_refused_before_the_first_step_and_before_any_change():
    model = two_optimizers(lambda: keras.optimizers.SGD(0.1), lambda: Odd(0.1))
    model.body.build(model.trainable_variables[:-2])
    model.head.build(model.trainable_variables[-2:])
    x, y = np.zeros((8, 4), "float32"), np.zeros((8, 2), "float32")
    before, graph = model.get_weights(), keras_pcp.build_graph(model)
    with pytest.raises(keras_pcp.errors.UnsupportedModelError, match="Odd"):
        keras_pcp.shrink(model, graph, keras_pcp.Selection({"second": np.arange(6) < 3}))
    callback = keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=(x, y))
    with pytest.raises(keras_pcp.errors.UnsupportedModelError, match="Odd"):
        model.fit(x, y, epochs=8, verbose=0, callbacks=[callback])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_an_optimizer_that_is_not_built_yet_and_one_that_is_no_longer_in_use_do_not_matter():
    model = build("plain_flatten")
    model.compile(Odd(0.1), "mse")
    x, y = inputs_for(model, 8), targets_for(model)
    model.train_on_batch(x, y)
    model.compile("adam", "mse")
    later = keras.optimizers.Adam(0.01)
    graph = keras_pcp.build_graph(model)
    keras_pcp.shrink(model, graph, random_selection(graph, 0))
    before = model.get_weights()
    model.train_on_batch(x, y)
    later.apply([keras.ops.ones_like(v) for v in model.trainable_variables], model.trainable_variables)
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))

"""The super-net in `fit`, saved, and searched."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_fits import network, samples
from zoo import assert_close, build, each, inputs_for, outputs_of

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, LimitError, NotFiniteError
from keras_pcp.supernet.scoring import Scorer

L = keras.layers


def staged(seed=0, drop=0.0):
    """Returns a network with two places where the resolution changes."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1))
    for name, filters, strides in (("first", 8, 1), ("second", 8, 1), ("third", 12, 2), ("fourth", 16, 2)):
        x = L.Conv2D(filters, 3, strides, padding="same", use_bias=False, name=name)(x)
        x = L.ReLU()(L.BatchNormalization(momentum=0.5)(x))
    x = L.Dropout(drop)(x) if drop else x
    return keras.Model(inputs, L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(x)))


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8, 8, 1)).astype("float32")
    return x, (x.mean((1, 2, 3)) > 0).astype(int) + (x[:, :4].mean((1, 2, 3)) > 0)


def compiled(supernet, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supernet.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"], **options)
    return supernet


def fitted(supernet, epochs=2, **options):
    return compiled(supernet, **options).fit(*data(), batch_size=16, epochs=epochs, verbose=0).history


def test_sub_nets_come_closer_to_the_full_net():
    supernet = keras_pcp.StagewiseSupernet(staged(), 3)
    scorer = Scorer(supernet, data()[0])
    middle = supernet.plan.levels[:, 4]
    before = [scorer.error(stage, middle) for stage in range(3)]
    history = fitted(supernet, epochs=10)
    assert history["distillation"][-1] < history["distillation"][0]
    scorer = Scorer(supernet, data()[0])
    assert sum(scorer.error(stage, middle) for stage in range(3)) < sum(before)


def test_the_full_net_is_the_model_and_trains_in_place():
    model = staged()
    before = model.get_weights()
    supernet = keras_pcp.StagewiseSupernet(model, 3)
    assert_close(outputs_of(supernet, data()[0]), outputs_of(model, data()[0]), 1e-6)
    fitted(supernet, epochs=1)
    assert_close(outputs_of(supernet, data()[0]), outputs_of(model, data()[0]), 1e-6)
    assert not any(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True) if a.ndim > 1)


def test_without_sub_nets_a_step_would_do_what_an_ordinary_step_does():
    plain, model = staged(), staged()
    supernet = keras_pcp.StagewiseSupernet(model, 3, samples=0, distillation_weight=1e-12)
    compiled(plain).fit(*data(), batch_size=16, epochs=2, shuffle=False, verbose=0)
    compiled(supernet).fit(*data(), batch_size=16, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), model.get_weights(), strict=True):  # statistics of normalization included
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_gradients_of_sub_nets_reach_what_they_use_and_not_the_teacher():
    model = staged()
    supernet = keras_pcp.StagewiseSupernet(model, 3, samples=0, ratios=(0.25,))
    x = tf.constant(data()[0])
    with tf.GradientTape() as tape:
        supernet(x, training=True)
        [loss] = supernet.losses
    kernels = {w.path: w for w in model.trainable_variables if "kernel" in w.path}
    gradients = dict(zip(kernels, tape.gradient(loss, [w.value for w in kernels.values()]), strict=True))
    second = next(np.asarray(g) for path, g in gradients.items() if "second" in path)
    used = np.abs(second).max((0, 1, 3)) > 0
    keep = supernet.plan.gating.selection(supernet.plan.levels[:, 0], np.asarray(supernet.ranks.value))
    np.testing.assert_array_equal(used, keep.keep["first"])


def test_the_number_of_traces_does_not_depend_on_the_number_of_sub_nets():
    supernet = compiled(keras_pcp.StagewiseSupernet(staged(), 3))
    supernet.fit(*data(), batch_size=16, epochs=5, verbose=0)
    assert supernet.train_function is not None
    scorer = Scorer(supernet, data()[0])
    for level in range(8):
        for stage in range(3):
            scorer.error(stage, supernet.plan.levels[:, level])
    assert scorer.num_traces == 5  # one for each stage, two for the whole


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_scores_are_those_of_the_pruned_model_with_statistics_of_the_same_samples(drop):
    model = staged(drop=drop)
    supernet = keras_pcp.StagewiseSupernet(model, 3)
    x, widths = data()[0], supernet.plan.levels[:, 3]
    before = model.get_weights()
    scorer = Scorer(supernet, x)
    found = scorer.outputs(None, widths)[supernet.plan.trace.outputs[0]]
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    selection = supernet.plan.gating.selection(widths, np.asarray(supernet.ranks.value))
    small = keras_pcp.prune_model(model, supernet.plan.graph, selection)
    keras_pcp.reestimate_batch_norm(small, x, batch_size=64)
    np.testing.assert_allclose(found, small.predict(x, verbose=0), rtol=1e-3, atol=1e-5)
    assert scorer.error(None, supernet.plan.levels[:, -1]) == pytest.approx(0, abs=1e-9)
    for stage, part in enumerate(supernet.plan.parts):
        alone = supernet.plan.levels[:, -1].copy()
        own = [group for group in part.groups if supernet.plan.gating.names[group] not in supernet.plan.tied]
        alone[own] = widths[own]
        assert scorer.error(stage, alone) == pytest.approx(scorer.error(None, alone), rel=1e-3, abs=1e-6)
        assert scorer.error(stage, widths) > 0


@pytest.mark.parametrize("reads", ["full", "own"])
def test_a_stage_reads_the_features_of_the_full_net_or_its_own(reads):
    """Only with its own does what a later stage is taught reach the weights of an earlier one."""
    supernet = keras_pcp.StagewiseSupernet(staged(), 3, samples=0, ratios=(0.25,), stage_inputs=reads)
    x = tf.constant(data()[0])
    supernet.teach(2)
    with tf.GradientTape() as tape:
        supernet(x, training=True)
        loss = supernet.losses[-1]
    first = [supernet.model.weights[i] for i in supernet.plan.parts[0].weights]
    kernels = [w.value for w in first if "kernel" in w.path]
    found = tape.gradient(loss, kernels, unconnected_gradients="zero")
    assert any(np.abs(g).max() > 0 for g in map(np.asarray, found)) == (reads == "own")
    assert keras_pcp.StagewiseSupernet.from_config(supernet.get_config()).stage_inputs == reads


def test_stages_can_be_taught_one_by_one():
    supernet = keras_pcp.StagewiseSupernet(staged(), 3, samples=0, ratios=(0.25,))
    x, losses = tf.constant(data()[0]), []
    for taught in ((0,), (1,), (2,), (0, 1, 2), ()):
        supernet.teach(*taught)
        supernet(x, training=True)
        losses.append(float(supernet.losses[0]))
    assert min(losses) > 0
    assert sum(losses[:3]) == pytest.approx(losses[3], rel=1e-4) == pytest.approx(losses[4], rel=1e-4)
    with pytest.raises(InvalidArgumentError, match="no stage 3"):
        supernet.teach(3)


def test_channels_that_a_sub_net_does_not_have_do_not_count():
    supernet = keras_pcp.StagewiseSupernet(staged(), 3)
    [border] = supernet.plan.stages[0].outputs
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(2, 8, 8, 8)).astype("float32")
    ranks = np.asarray(supernet.ranks.value)
    widths = supernet.plan.gating.sizes // 2
    keep = supernet.plan.gating.selection(widths, ranks).keep["second"]
    student = np.where(keep, teacher, 100.0)
    assert float(supernet.relative_error(border, student, teacher, widths, ranks)) == 0
    student = np.where(keep, 0, teacher)
    assert float(supernet.relative_error(border, student, teacher, widths, ranks)) == pytest.approx(1)


def test_the_search_holds_its_limit_and_gives_a_plain_model():
    supernet = keras_pcp.StagewiseSupernet(staged(), 3, ratios=(0.25, 0.5, 0.75))
    fitted(supernet)
    full = keras_pcp.count_cost(supernet.model).macs
    found = supernet.search(max_macs=0.5, validation_data=data(), evaluations=64, verbose=False)
    assert found.tied == ("second", "third")
    cost = keras_pcp.count_cost(found.model)
    assert cost.macs == pytest.approx(found.cost["macs"])
    assert 0.35 * full < cost.macs <= 0.5 * full
    costs, errors = [n.cost["macs"] for n in found.front], [n.error for n in found.front]
    assert costs == sorted(costs)
    assert errors == sorted(errors, reverse=True)
    assert costs[-1] == full
    assert errors[-1] == pytest.approx(0, abs=1e-6)
    assert type(found.model) is type(supernet.model)
    compiled(found.model).fit(*data(), verbose=0)
    by_evolution = supernet.search(
        max_macs=0.5, validation_data=data(), evaluations=200, method="evolution", verbose=False
    )
    assert by_evolution.cost["macs"] <= 0.5 * full


def test_a_search_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    supernet, file = keras_pcp.StagewiseSupernet(staged(), 3, ratios=(0.25, 0.5)), tmp_path / "search.json"
    options = {"max_macs": 0.5, "validation_data": data(), "verbose": False, "checkpoint": file}
    first = supernet.search(**options)
    figure = first.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000
    assert len(figure.axes) == 1
    monkeypatch.setattr(Scorer, "error", None)
    again = supernet.search(**options)
    assert (again.selection, again.error, again.evaluations) == (first.selection, first.error, first.evaluations)
    with pytest.raises(InvalidArgumentError, match="other samples"):
        supernet.search(**options, samples=8)
    file.write_text(file.read_text()[:-9])
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        supernet.search(**options)


def test_a_network_that_is_not_finite_is_not_searched():
    supernet = keras_pcp.StagewiseSupernet(staged(), 3, ratios=(0.5,))
    bias = supernet.model.get_layer("logits").bias
    bias.assign([np.nan, 0, 0])
    with pytest.raises(NotFiniteError, match="logits"):
        supernet.search(max_macs=0.5, validation_data=data(), verbose=False)
    bias.assign(np.zeros(3))
    supernet.model.get_layer("logits").kernel.assign(np.full((16, 3), 3e38))
    with pytest.raises(NotFiniteError, match="has NaN or infinite values on validation_data"):
        supernet.search(max_macs=0.5, validation_data=data(), verbose=False)


def test_stages_do_not_share_a_normalization():
    x = keras.Input((8,))
    shared = L.BatchNormalization(name="shared")
    y = L.Dense(8, name="second")(L.ReLU()(shared(L.Dense(8, name="first")(x))))
    model = keras.Model(x, L.Dense(2)(shared(y)))
    keras_pcp.StagewiseSupernet(model, 1)
    with pytest.raises(InvalidArgumentError, match="both call layer 'shared'"):
        keras_pcp.StagewiseSupernet(model, cut_after=["second"])


def test_what_is_wrong_is_said_before_anything_is_scored():
    supernet = keras_pcp.StagewiseSupernet(staged(), 3, ratios=(0.5,))
    with pytest.raises(LimitError, match="macs cannot get below"):
        supernet.search(max_macs=0.01, validation_data=data())
    with pytest.raises(InvalidArgumentError, match="no limit given"):
        supernet.search(validation_data=data())
    with pytest.raises(InvalidArgumentError, match="method must be"):
        supernet.search(max_macs=0.5, validation_data=data(), method="greedy")
    with pytest.raises(InvalidArgumentError, match="does not fit the inputs"):
        supernet.search(max_macs=0.5, validation_data=np.zeros((8, 3)))
    for options, message in (
        ({"num_stages": 0}, "num_stages"),
        ({"samples": -1}, "samples"),
        ({"ratios": (0.5, 2)}, "ratios"),
        ({"ratios": ()}, "ratios"),
        ({"distillation_weight": 0}, "distillation_weight"),
        ({"sampling": "all"}, "sampling"),
        ({"stage_inputs": "teacher"}, "stage_inputs"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            keras_pcp.StagewiseSupernet(staged(), **options)
    x = keras.Input((4,))
    with pytest.raises(InvalidArgumentError, match="no channels that can be pruned"):
        keras_pcp.StagewiseSupernet(keras.Model(x, L.Dense(2)(x)), 1)


def test_saved_and_loaded_it_goes_on_alike(tmp_path):
    supernet = keras_pcp.StagewiseSupernet(staged(), 3, sampling="fair", samples=1)
    fitted(supernet)
    supernet.save(tmp_path / "supernet.keras")
    again = keras.models.load_model(tmp_path / "supernet.keras")
    assert again.get_config()["sampling"] == "fair"
    for net in (supernet, again):
        net.fit(*data(), batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(supernet.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_file_with_an_order_of_other_groups_is_refused(tmp_path):
    supernet = keras_pcp.StagewiseSupernet(staged(), 3)
    ranks = keras.ops.convert_to_numpy(supernet.ranks)
    supernet.ranks.assign(ranks[::-1] + np.arange(len(ranks)) // 2)
    supernet.save(tmp_path / "supernet.keras")
    with pytest.raises(ValueError, match="finds other groups of channels in this network; train"):
        keras.models.load_model(tmp_path / "supernet.keras")


@pytest.mark.slow
def test_another_process_needs_only_to_import_the_package(tmp_path):
    keras_pcp.StagewiseSupernet(staged(), 3).save(tmp_path / "supernet.keras")
    code = "import keras, keras_pcp; print(type(keras.models.load_model('supernet.keras')).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "StagewiseSupernet", done.stderr[-2000:]


@pytest.mark.slow
def test_a_fit_that_was_cut_off_goes_on_alike(tmp_path):
    class CutOff(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    whole_run, first, second = (keras_pcp.StagewiseSupernet(staged(), 3) for _ in range(3))
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(16)
    compiled(whole_run).fit(batches, epochs=4, verbose=0)
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    with pytest.raises(KeyboardInterrupt):
        compiled(first).fit(batches, epochs=4, verbose=0, callbacks=[backup, CutOff()])
    compiled(second).fit(batches, epochs=4, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    for a, b in zip(whole_run.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


slow = [pytest.param(options, marks=pytest.mark.slow) for options in ({"run_eagerly": True}, {"jit_compile": True})]


@pytest.mark.parametrize("options", [{"steps_per_execution": 2}, *slow])
def test_ways_to_compile(options):
    history = fitted(keras_pcp.StagewiseSupernet(staged(), 3, samples=1), **options)
    assert np.isfinite(history["loss"]).all()


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        x = keras.Input((1,))
        large = L.Dense(4, dtype="float32")(L.Rescaling(1e-5, dtype="float32")(x))
        odd = keras.Model(x, L.Dense(2, dtype="float32")(large))
        inputs = np.array([[1e5], [7e4]], "float32")
        assert_close(outputs_of(keras_pcp.StagewiseSupernet(odd, 1), inputs), outputs_of(odd, inputs), 1e-6)
        supernet = keras_pcp.StagewiseSupernet(odd, 1, samples=0, ratios=(1.0,))
        supernet(inputs, training=True)
        assert float(supernet.losses[0]) == 0  # the full net teaches itself
        supernet = keras_pcp.StagewiseSupernet(staged(), 3)
        history = fitted(supernet)
        assert isinstance(supernet.optimizer, keras.optimizers.LossScaleOptimizer)
        found = supernet.search(max_macs=0.5, validation_data=data(), evaluations=30, verbose=False)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(found.error)


@pytest.mark.parametrize("name", ["two_in_two_out", "nested", *each(["single_shot_detector", "u_net", "concat"])])
def test_other_networks(name, tmp_path):
    model = build(name)
    supernet = keras_pcp.StagewiseSupernet(model, 1, samples=1)
    x = inputs_for(model, batch=8)
    y = [np.zeros(o.shape, "float32") for o in outputs_of(model, x)]
    supernet.compile("sgd", ["mse"] * len(y) if len(y) > 1 else "mse")
    structure = keras.tree.pack_sequence_as(model.output, y)
    assert np.isfinite(supernet.fit(x, structure, verbose=0).history["loss"]).all()
    assert keras.tree.map_structure(np.shape, supernet.predict(x, verbose=0)) == keras.tree.map_structure(
        np.shape, structure
    )
    assert "distillation" not in supernet.evaluate(x, structure, verbose=0, return_dict=True)
    options = {"max_macs": 0.7, "evaluations": 3, "verbose": False, "checkpoint": tmp_path / "search.json"}
    found = supernet.search(validation_data=(x, structure), **options)
    assert supernet.search(validation_data=(x, structure), **options).evaluations == found.evaluations == 3


def test_a_network_whose_outputs_are_probabilities():
    model = network()
    inner = keras.Model(model.inputs, L.Softmax()(model.output))
    supernet = keras_pcp.StagewiseSupernet(inner, 1)
    supernet.compile("sgd", "sparse_categorical_crossentropy")
    outputs = supernet.predict(samples()[0], verbose=0)
    [number] = supernet.plan.trace.outputs
    widths, ranks = supernet.plan.levels[:, -1], supernet.ranks.value
    assert float(supernet.error(number, outputs + 1, outputs, widths, ranks)) > 1  # for logits, a shift would not count
    assert np.isfinite(supernet.fit(*samples(), verbose=0).history["loss"]).all()


@pytest.mark.slow
def test_on_two_devices():
    code = """
import numpy as np, keras, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras_pcp
from keras_pcp.support.internals import array_of
from test_model import compiled, data, staged
both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with both.scope():
    supernet = compiled(keras_pcp.StagewiseSupernet(staged(), 3))
history = supernet.fit(*data(), batch_size=16, epochs=3, verbose=0).history
assert both.num_replicas_in_sync == 2 and np.isfinite(history["loss"]).all()
assert history["distillation"][-1] < history["distillation"][0], history
assert array_of(supernet.step) == 12, supernet.step
found = supernet.search(max_macs=0.5, validation_data=data(), evaluations=30, verbose=False)
print("good", found.model.count_params())
"""
    here = Path(__file__).parent
    code = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "good" in done.stdout, done.stderr[-2000:]

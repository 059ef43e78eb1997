"""Gradient reversal, two-headed networks, pseudo-labels, and pruning by two domains."""

import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.delivered import delivered_graph

L = keras.layers


def features(width=8):
    x = keras.Input((8, 8, 1))
    y = L.Conv2D(width, 3, activation="relu", name="first")(x)
    y = L.Conv2D(width, 3, activation="relu", name="second")(y)
    return keras.Model(x, L.GlobalAveragePooling2D()(y))


def dann(width=8, **options):
    keras.utils.set_random_seed(0)
    domain_head = options.pop("domain_head", None) or keras.Sequential([L.Dense(6, activation="relu"), L.Dense(1)])
    found = keras_pcp.adaptation.DANN(features(width), L.Dense(3, name="logits"), domain_head, **options)
    found.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return found


def domains(count=96):
    """Stripes of three directions; in the target, brighter and noisier."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    i, j = np.mgrid[:8, :8]
    waves = np.stack([np.sin(i * 2.0), np.sin(j * 2.0), np.sin(i + j)])[y][..., None]
    return (waves.astype("float32"), y), (waves + 0.5 + rng.normal(0, 0.3, waves.shape)).astype("float32")


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_the_gradient_is_minus_the_weight_times_that_of_finite_differences(how):
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    reverse = keras_pcp.GradientReversal(0.7, dtype="float64")

    def loss(v, layer):
        return tf.reduce_sum(tf.sin(layer(v) @ matrix) ** 2)

    def gradient(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            found = loss(v, reverse)
        return found, tape.gradient(found, v)

    run = {"eager": gradient, "graph": tf.function(gradient), "xla": tf.function(gradient, jit_compile=True)}[how]
    value, found = run(tf.constant(x))
    assert float(value) == pytest.approx(float(loss(tf.constant(x), lambda v: v)), rel=1e-12)
    numeric = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        up, down = (float(loss(tf.constant(x + sign * step), lambda v: v)) for sign in (1, -1))
        numeric[place] = (up - down) / 2e-6
    assert found.numpy() == pytest.approx(-0.7 * numeric, rel=1e-6, abs=1e-8)


def test_reversal_in_mixed_precision_and_after_saving(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(keras_pcp.GradientReversal(0.5, dtype="mixed_float16", name="reverse")(x)))
    layer = model.get_layer("reverse")
    assert layer(np.ones((1, 4), "float32")).dtype == "float16"
    layer.weight.assign(0.25)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.get_layer("reverse").weight) == 0.25
    with tf.GradientTape() as tape:
        v = tf.Variable(np.ones((1, 4), "float32"))
        y = tf.reduce_sum(tf.cast(loaded.get_layer("reverse")(v), "float32"))
    assert tape.gradient(y, v).numpy().tolist() == [[-0.25] * 4]


def test_a_functional_model_with_reversal_is_pruned_and_exported_without_it(tmp_path):
    x = keras.Input((8, 8, 1))
    y = keras_pcp.GradientReversal(0.5)(L.Conv2D(6, 3, name="conv")(x))
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(y)))
    graph = keras_pcp.build_graph(model)
    assert [g.name for g in graph] == ["conv"]
    small = keras_pcp.prune_model(model, graph, keras_pcp.Selection({"conv": np.arange(6) < 4}))
    assert keras_pcp.export_litert(small, tmp_path / "small.tflite").max_error < 1e-5
    assert operations(tmp_path / "small.tflite") == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]


def operations(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    return [detail["op_name"] for detail in interpreter._get_ops_details() if detail["op_name"] != "DELEGATE"]


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_bad_reversal_weights_are_refused(weight):
    with pytest.raises(InvalidArgumentError, match="weight"):
        keras_pcp.GradientReversal(weight)


def test_the_schedules_follow_the_paper():
    network = dann()
    seen = []
    (x, y), target = domains()
    schedule = keras_pcp.adaptation.ReversalSchedule()
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda b, logs: seen.append(float(network.model.get_layer("reversal").weight))
    )
    network.fit((x, y), target, batch_size=32, epochs=2, verbose=0, callbacks=[schedule, note])
    p = np.arange(12) / 12
    assert seen == pytest.approx(2 / (1 + np.exp(-10 * p)) - 1, abs=1e-6)
    rate = keras_pcp.adaptation.AnnealedLearningRate(0.01, 100)
    assert [float(rate(s)) for s in (0, 50, 100, 200)] == pytest.approx([0.01, 0.01 / 6**0.75, *[0.01 / 11**0.75] * 2])
    assert keras_pcp.adaptation.AnnealedLearningRate.from_config(rate.get_config()).get_config() == rate.get_config()
    network.classifier.compile("sgd", "mse")
    with pytest.raises(InvalidArgumentError, match="no GradientReversal"):
        network.classifier.fit(x, np.zeros((len(x), 3)), verbose=0, callbacks=[keras_pcp.adaptation.ReversalSchedule()])


def test_the_loss_is_that_of_source_labels_pseudo_labels_and_domains():
    """One step on one batch moves the weights as the three losses written by hand do."""
    network = dann(weight=0.3)
    (x, y), target = domains(8)
    labels, weights = np.array([0, 1, 2, 0, 1, 2, 0, 1]), np.array([1, 0, 1, 1, 0, 0, 1, 0], "float32")

    class Fixed(keras_pcp.PseudoLabels):
        def assign(self, outputs):
            return labels, weights

    model = network.model
    path = network.classifier
    domain_head = next(layer for layer in model.layers if isinstance(layer, keras.Sequential))
    shared = keras.Model(model.input, model.get_layer("logits").input)
    before = [w.numpy() for w in shared.trainable_weights]
    with tf.GradientTape(persistent=True) as tape:
        f, t = shared(x), shared(target)
        cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        label = tf.reduce_mean(cross(y, path(x)))
        pseudo = tf.reduce_sum(weights * cross(labels, path(target))) / len(target)
        told = keras.losses.BinaryCrossentropy(from_logits=True)
        domain = told(np.repeat([[0.0], [1.0]], 8, axis=0), domain_head(tf.concat([f, t], 0)))
        values = [w.value for w in shared.trainable_weights]
    expected = [
        a + 0.5 * b - 0.3 * c
        for a, b, c in zip(*(tape.gradient(loss, values) for loss in (label, pseudo, domain)), strict=True)
    ]
    network.fit((x, y), target, batch_size=16, verbose=0, pseudo_labels=Fixed(), pseudo_weight=0.5)
    moved = [(b - w.numpy()) / 0.05 for b, w in zip(before, shared.trainable_weights, strict=True)]
    for m, e in zip(moved, expected, strict=True):
        assert m == pytest.approx(e.numpy(), abs=2e-5)


def test_only_the_label_path_is_counted_pruned_and_exported(tmp_path):
    network = dann()
    (x, y), target = domains()
    labels = keras_pcp.PseudoLabels(0.4, true_labels=y)
    samples = network.validation_data((x, y), target, pseudo_labels=labels, samples=40)
    pruning = keras_pcp.ProgressivePruning(max_macs=0.5, deliver=network.classifier, validation_data=samples)
    alone = keras_pcp.count_cost(network.classifier)
    head = [w.shape for layer in network.model.layers if isinstance(layer, keras.Sequential) for w in layer.weights]
    network.fit((x, y), target, batch_size=32, epochs=4, verbose=0, callbacks=[pruning])
    assert pruning.report.before == {"macs": alone.macs, "params": alone.params, "bytes": alone.bytes}
    assert len(pruning.report.draws) == 1 + len(pruning.report.shrinks) > 2  # at the start and at every moment
    assert all(("right" in draw) == (draw["passed"] > 0) for draw in pruning.report.to_json()["draws"])
    assert "samples drawn 1: passed" in str(pruning.report)
    after = keras_pcp.count_cost(network.classifier)
    assert pruning.report.after["macs"] == after.macs <= 0.5 * alone.macs
    kept = [w.shape for layer in network.model.layers if isinstance(layer, keras.Sequential) for w in layer.weights]
    assert [tuple(s) for s in kept[1:]] == [tuple(s) for s in head[1:]]  # its own width stays; it reads fewer features
    shared = network.model.predict(x, verbose=0)["label"]
    assert np.array_equal(network.classifier.predict(x, verbose=0), shared)
    file = keras_pcp.export_litert(network.classifier, tmp_path / "classifier.tflite", representative_data=x)
    assert file.max_error < 1e-4
    assert operations(tmp_path / "classifier.tflite").count("FULLY_CONNECTED") == 1


def test_drops_are_weighted_between_source_and_pseudo_labels():
    network = dann()
    (x, y), target = domains(60)
    network.fit((x, y), target, batch_size=32, epochs=3, verbose=0)
    labels = network.classifier.predict(target, verbose=0).argmax(-1)
    for weight in (0.0, 0.3, 1.0):
        data = network.validation_data(
            (x, y), target[:30], target_weight=weight, pseudo_labels=keras_pcp.PseudoLabels(0.0)
        )
        assert len(data()[0]) == 60 * (weight < 1) + 30 * (weight > 0)
        graph = keras_pcp.build_graph(network.model)
        evaluator = keras_pcp.fit.evaluator.Evaluator(network.model, data(), None, 0)
        selection = keras_pcp.Selection({"second": np.arange(8) < 3, "first": np.arange(8) < 4})
        with keras_pcp.masked(network.model, graph, selection):
            guessed = network.classifier.predict(x, verbose=0).argmax(-1)
            on_target = network.classifier.predict(target[:30], verbose=0).argmax(-1)
            found = evaluator.evaluate().metric
        expected = (1 - weight) * np.mean(guessed == y) + weight * np.mean(on_target == labels[:30])
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("criterion", ["taylor", "group_fisher", "thinet", "lasso"])
def test_criteria_do_not_see_the_domain_head(criterion):
    (x, y), target = domains()
    scores = []
    for weight, scale in ((0.0, 1.0), (5.0, 30.0)):
        network = dann(weight=weight)
        domain_head = next(layer for layer in network.model.layers if isinstance(layer, keras.Sequential))
        for kernel in domain_head.weights:
            kernel.assign(kernel * scale)
        data = network.validation_data((x, y), target, pseudo_labels=keras_pcp.PseudoLabels(0.0), samples=32)
        graph = delivered_graph(network.model, network.classifier, "error", ())
        scores.append(keras_pcp.score_channels(network.model, graph, criterion, data=data()))
    assert scores[0].keys() >= {"first", "second"}
    for name in ("first", "second"):
        assert scores[0][name] == pytest.approx(scores[1][name], rel=1e-5, abs=1e-9)


def test_pseudo_labels():
    logits = np.log([[0.95, 0.03, 0.02], [0.01, 0.97, 0.02], [0.92, 0.04, 0.04], [0.5, 0.3, 0.2]])
    labels, weights = keras_pcp.PseudoLabels(0.9).assign(logits)
    assert (labels.tolist(), weights.tolist()) == ([0, 1, 0, 0], [1, 1, 1, 0])
    assert keras_pcp.PseudoLabels(0.9).assign(np.exp(logits))[1].tolist() == [1, 1, 1, 0]
    _, balanced = keras_pcp.PseudoLabels(0.9, balanced=True).assign(logits)
    assert balanced == pytest.approx([0.75, 1.5, 0.75, 0])
    rare = np.repeat([[5.0, 0.0], [0.0, 5.0]], [99, 1], axis=0)
    _, capped = keras_pcp.PseudoLabels(0.9, balanced=True).assign(rare)
    assert capped[-1] == pytest.approx(10 * capped[0])
    assert capped.mean() == pytest.approx(1)
    told = keras_pcp.PseudoLabels(0.9, true_labels=[0, 1, 2, 0])
    assert told.judged(labels, weights) == {"passed": 0.75, "right": pytest.approx(2 / 3)}
    assert told.judged(labels[2:], weights[2:], [2, 3]) == {"passed": 0.5, "right": 0.0}
    nothing = keras_pcp.PseudoLabels(0.9, balanced=True, true_labels=[0]).assign(np.zeros((1, 3)))
    assert nothing[1].tolist() == [0]


def test_pseudo_labels_are_renewed_while_training():
    network = dann()
    (x, y), target = domains()
    labels = keras_pcp.PseudoLabels(0.5, refresh_every=2, true_labels=y)
    network.fit((x, y), target, batch_size=32, epochs=5, verbose=0, pseudo_labels=labels)
    assert len(labels.history) == 3
    assert all(("right" in entry) == (entry["passed"] > 0) for entry in labels.history)


def test_new_pseudo_labels_are_trained_on():
    """Labels that change after the first epoch move the weights otherwise than labels that stay."""
    (x, y), target = domains()

    class Fixed(keras_pcp.PseudoLabels):
        def assign(self, outputs):
            return (np.arange(96) + self.turn * len(self.history)) % 3, np.ones(96, "float32")

    found = []
    for turn in (0, 0, 1):
        network, labels = dann(), Fixed()
        labels.turn = turn
        network.fit((x, y), target, batch_size=32, epochs=2, verbose=0, pseudo_labels=labels)
        found.append(network.classifier.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_fit_validates_on_labelled_samples_and_goes_on_where_it_was():
    (x, y), target = domains()
    network = dann()
    network.fit((x, y), target, batch_size=32, epochs=2, verbose=0)
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda e, logs: seen.append(float(network.model.get_layer("reversal").weight))
    )
    history = network.fit(
        (x, y),
        target,
        batch_size=32,
        initial_epoch=2,
        epochs=4,
        verbose=0,
        validation_data=(x[:30], y[:30]),
        callbacks=[keras_pcp.adaptation.ReversalSchedule(), note],
    )
    right = np.mean(network.classifier.predict(x[:30], verbose=0).argmax(-1) == y[:30])
    assert history.history["val_label_accuracy"][-1] == pytest.approx(right, abs=1e-6)
    assert 0 < history.history["domain_told_apart"][-1] <= 1
    assert seen == pytest.approx([2 / (1 + np.exp(-10 * p)) - 1 for p in (0.5, 0.75)], abs=1e-6)


def test_features_may_have_batch_normalization_and_a_list_of_one_input():
    (x, y), target = domains()
    keras.utils.set_random_seed(0)
    given = keras.Input((8, 8, 1))
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, name="conv")(given)))
    network = keras_pcp.adaptation.DANN(keras.Model([given], L.GlobalAveragePooling2D()(h)), L.Dense(3), L.Dense(1))
    network.compile("adam")
    target = (target * 40 + 100).clip(0, 255).astype("uint8")
    x = (x * 40 + 100).clip(0, 255).astype("uint8")
    labels = keras_pcp.PseudoLabels(0.99999)
    samples = network.validation_data((x, y), target, pseudo_labels=labels)
    assert len(samples()[0]) == 2 * 96  # also samples of which no label is sure, for batch normalization
    pruning = keras_pcp.ProgressivePruning(
        max_macs=0.5,
        deliver=network.classifier,
        validation_data=samples,
        refit_data=np.concatenate([x, target]),
    )
    pairs = tf.data.Dataset.from_tensor_slices((target, y)).batch(16)  # its labels are not looked at
    network.fit((x, y), pairs, batch_size=32, epochs=4, verbose=0, callbacks=[pruning])
    assert pruning.report.reached


def test_the_discrepancy_is_that_of_its_formula():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (6, 4)), rng.normal(1, 2, (6, 4))])
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    kernel = np.mean([np.exp(-distances / (s * distances.mean())) for s in (0.25, 0.5, 1, 2, 4)], axis=0)
    expected = kernel[:6, :6].mean() + kernel[6:, 6:].mean() - 2 * kernel[:6, 6:].mean()
    domain = np.repeat([[0.0], [1.0]], 6, axis=0)
    found = keras_pcp.adaptation.discrepancy_loss(domain, keras_pcp.adaptation.MeanDiscrepancy()(x.astype("float32")))
    assert float(np.mean(found)) == pytest.approx(expected, abs=1e-5)


def test_training_with_the_discrepancy_prunes_too(tmp_path):
    network = dann(domain_head=keras_pcp.adaptation.MeanDiscrepancy())
    (x, y), target = domains()
    pruning = keras_pcp.ProgressivePruning(
        max_macs=0.5, deliver=network.classifier, validation_data=network.validation_data((x, y), target)
    )
    history = network.fit((x, y), target, batch_size=32, epochs=4, verbose=0, callbacks=[pruning])
    assert pruning.report.reached
    network.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.allclose(loaded.predict(x, verbose=0)["label"], network.classifier.predict(x, verbose=0))
    alone = dann(domain_head=keras_pcp.adaptation.MeanDiscrepancy())
    alone.compile(keras.optimizers.SGD(0.05, momentum=0.9), domain_weight=0.0)
    without = alone.fit((x, y), target, batch_size=32, epochs=4, verbose=0)
    assert history.history["domain_loss"][-1] < without.history["domain_loss"][-1]


def test_bad_networks_and_data_are_refused():
    with pytest.raises(UnsupportedModelError, match="one output"):
        keras_pcp.build_dann(L.Dense(2), L.Dense(2), L.Dense(1))
    with pytest.raises(InvalidArgumentError, match=r"\(batch, 1\)"):
        keras_pcp.build_dann(features(), L.Dense(2), L.Dense(2))
    (x, y), target = domains()
    network = dann()
    for options, message in [
        ({"batch_size": 33}, "batch_size"),
        ({"batch_size": 512}, "half a batch"),
        ({"source": (x, np.eye(3)[y])}, "class numbers"),
        ({"source": (x, y, np.ones(96))}, "sample weights"),
        ({"target": (target, y)}, "target must be"),
        ({"target": target[:, 1:]}, "one shape"),
        ({"source": (x[:, 1:], y), "target": target[:, 1:]}, "network takes"),
        ({"target": tf.data.Dataset.from_tensor_slices(target).batch(8).repeat()}, "without an end"),
        ({"target": tf.data.Dataset.from_tensor_slices({"x": target}).batch(8)}, "one array"),
        ({"target": [1.0, 2.0]}, "target must be"),
        ({"validation_data": network.validation_data((x, y), target)}, "is for ProgressivePruning"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            network.fit(**{"source": (x, y), "target": target, **options})
    for options in (
        {"loss_weights": [1, 1]},
        {"weighted_metrics": ["accuracy"]},
        {"metrics": {"domain": ["accuracy"]}},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            network.compile("sgd", **options)
    with pytest.raises(InvalidArgumentError, match="target_weight"):
        network.validation_data((x, y), target, target_weight=1.5)
    pruning = keras_pcp.ProgressivePruning(max_macs=0.5, deliver=features(), validation_data=(x, y))
    with pytest.raises(InvalidArgumentError, match="deliver must be"):
        network.fit((x, y), target, callbacks=[pruning], verbose=0)
    for options in ({"threshold": 1.0}, {"refresh_every": 0}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            keras_pcp.PseudoLabels(**options)
    with pytest.raises(InvalidArgumentError, match="classes"):
        keras_pcp.PseudoLabels().assign(np.zeros((3, 1)))
    few = keras_pcp.PseudoLabels(true_labels=y[:5])
    with pytest.raises(InvalidArgumentError, match="5 labels for 96"):
        network.fit((x, y), target, pseudo_labels=few, verbose=0)
    with pytest.raises(InvalidArgumentError, match="5 labels for 96"):
        network.validation_data((x, y), target, pseudo_labels=few)
    inputs = [keras.Input((2,)), keras.Input((2,))]
    with pytest.raises(InvalidArgumentError, match="one input"):
        keras_pcp.adaptation.DANN(keras.Model(inputs, L.Add()(inputs)), L.Dense(2), L.Dense(1))


def test_delivered_layers_must_have_names_of_their_own():
    heads = [keras.Sequential([L.Dense(4, name="hidden"), L.Dense(n, name=f"out_{n}")]) for n in (3, 1)]
    network = keras_pcp.adaptation.DANN(features(), *heads)
    with pytest.raises(InvalidArgumentError, match=r"hidden.*another name"):
        delivered_graph(network.model, network.classifier, "error", ())


def test_only_calls_that_the_delivered_model_makes_are_counted():
    a, b = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    encoder = features()
    model = keras.Model([a, b], L.Subtract()([encoder(a), encoder(b)]))
    alone, whole = keras_pcp.count_cost(encoder), keras_pcp.count_cost(model)
    graph = delivered_graph(model, encoder, "error", ())
    assert whole.macs == 2 * alone.macs
    assert keras_pcp.count_cost(graph).macs == alone.macs
    assert keras_pcp.count_cost(graph).params == alone.params


def test_what_several_replicas_would_tear_apart_is_refused(monkeypatch):
    (x, y), target = domains()
    network = dann()
    monkeypatch.setattr(keras.Model, "distribute_strategy", SimpleNamespace(num_replicas_in_sync=2), raising=False)
    with pytest.raises(UnsupportedModelError, match="2 replicas"):
        network.fit((x, y), target, batch_size=32, verbose=0)


def test_datasets_are_taken_as_arrays_are():
    (x, y), target = domains()
    weights = []
    for source, other in [
        ((x, y), target),
        (tf.data.Dataset.from_tensor_slices((x, y)).batch(7), tf.data.Dataset.from_tensor_slices(target).batch(5)),
    ]:
        network = dann()
        network.fit(source, other, batch_size=32, epochs=2, verbose=0)
        weights.append(network.model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))

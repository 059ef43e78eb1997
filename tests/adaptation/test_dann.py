"""Two-headed networks that learn from two domains, and their pruning."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from domains import dann, domains, features, operations

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.delivered import delivered_graph

L = keras.layers


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
        evaluator = keras_pcp.fit.evaluator.Evaluator(network.model, data(), keras_pcp.Measuring(samples=None))
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


@pytest.mark.slow
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


def test_bad_networks_and_data_are_refused():
    with pytest.raises(UnsupportedModelError, match="one output"):
        keras_pcp.build_dann(L.Dense(2), L.Dense(2), L.Dense(1))
    other = keras.Sequential([keras.Input((77,)), L.Dense(1)])
    for role, heads in {"label_head": (other, L.Dense(1)), "domain_head": (L.Dense(2), other)}.items():
        with pytest.raises(InvalidArgumentError, match=f"{role} does not take features of shape .None, 8"):
            keras_pcp.build_dann(features(), *heads)
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
        ({"target": target[:, 1:]}, "the same shape"),
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
    with pytest.raises(InvalidArgumentError, match=r"hidden.*rename one"):
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

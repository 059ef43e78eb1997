"""The penalty on marked filters, against numpy and by its effect in training."""

import keras
import numpy as np
import pytest
from tiny_fits import network

import keras_pcp
from keras_pcp.repair.loss_terms import LossTerms
from keras_pcp.strategies.decorrelation import Decorrelation
from keras_pcp.support.batch import Batch

MARKED = {"first": np.arange(8) < 3, "second": np.arange(8) == 7}


def term_of(model, marked=MARKED, left=None, weight=2.0, start=10, steps=5):
    graph = keras_pcp.build_graph(model)
    return Decorrelation.of(graph, left or keras_pcp.Selection(), marked, weight, start, steps)


def penalty(term, model, step=15.0, replicas=1):
    batch = Batch(model, None, None, None, None, keras.ops.convert_to_tensor(step), replicas, keras.ops)
    return float(term(keras.ops.convert_to_tensor(0.0), batch))


def by_numpy(model, marked):
    """In loops, from the layers and their normalizations."""
    total, normalizations = 0.0, [w for w in model.layers if isinstance(w, keras.layers.BatchNormalization)]
    for (name, gone), normalization in zip(marked.items(), normalizations, strict=True):
        rows = model.get_layer(name).kernel.numpy().reshape(-1, 8).T.astype(float)
        unit = rows / np.sqrt(np.square(rows).sum() / 8)
        for i in range(8):
            for j in range(8):
                if gone[i] or gone[j]:
                    total += (unit[i] @ unit[j]) ** 2 / 8
            if gone[i]:
                total += 0.5 * (rows[i] @ rows[i])
                total += 0.5 * (normalization.gamma.numpy()[i] ** 2 + normalization.beta.numpy()[i] ** 2)
    return total


def test_the_penalty_is_that_of_the_formula_and_grows():
    model = network()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(np.linspace(-1, 1, 8))
    term = term_of(model)
    whole = 2.0 * by_numpy(model, MARKED)
    for step, share in ((3, 0), (10, 0), (11, 0.2), (15, 1), (40, 1)):
        assert penalty(term, model, step) == pytest.approx(share * whole, rel=1e-5)
        assert penalty(term, model, step, replicas=2) == pytest.approx(share * whole / 2, rel=1e-5)


def test_what_is_marked_is_found_in_the_model_as_it_is_now():
    model = network()
    graph = keras_pcp.build_graph(model)
    left = keras_pcp.Selection({"first": np.arange(8) % 2 == 0})
    small = keras_pcp.prune_model(model, graph, left)
    marked = {"first": MARKED["first"][::2], "second": MARKED["second"]}
    term = Decorrelation.of(graph, left, marked, 1.0, 0, 1)
    assert {len(place.marked) for place in term.places} == {4, 8}
    rows = small.get_layer("first").kernel.numpy().reshape(-1, 4)
    assert penalty(term, small) > 0.5 * np.sum(rows[:, :2] ** 2)


def test_pairs_of_filters_of_two_groups_are_counted_once():
    keras.utils.set_random_seed(0)
    i = keras.Input((4, 4, 2))
    a, b = (keras.layers.Conv2D(3, 1, name=name, use_bias=False)(i) for name in "ab")
    whole = keras.layers.Conv2D(6, 1, name="whole", use_bias=False)
    y = keras.layers.Add()([keras.layers.Concatenate()([a, b]), whole(i)])
    model = keras.Model(i, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(y)))
    marked = {"a": np.arange(3) < 1, "b": np.arange(3) < 2}
    expected = 0.0
    for name, gone in (("a", marked["a"]), ("b", marked["b"]), ("whole", np.concatenate(list(marked.values())))):
        rows = model.get_layer(name).kernel.numpy().reshape(2, -1).T.astype(float)
        unit = rows / np.sqrt(np.square(rows).sum() / len(rows))
        either = gone[:, None] | gone
        expected += np.square(unit @ unit.T)[either].sum() / len(rows) + 0.5 * np.square(rows[gone]).sum()
    assert penalty(term_of(model, marked, weight=1.0), model) == pytest.approx(expected, rel=1e-5)


def test_marked_filters_shrink_and_turn_away_and_the_others_stay():
    model = network()
    term = term_of(model, weight=1.0, start=0, steps=1)
    first = model.get_layer("first")
    before = first.kernel.numpy().reshape(-1, 8)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    alone = LossTerms(model, [lambda loss, batch: 0.0 * loss, term])
    with alone.added():
        model.fit(np.zeros((64, 6, 6, 1)), np.zeros((64, 3)), batch_size=4, epochs=4, verbose=0)
    after = first.kernel.numpy().reshape(-1, 8)
    lengths = np.linalg.norm(after, axis=0) / np.linalg.norm(before, axis=0)
    assert (lengths[:3] < 0.15).all()
    assert (lengths[3:] > 0.7).all()  # they lose what they have in common with the marked ones

    def parallel(kernel):
        unit = kernel / np.linalg.norm(kernel, axis=0)
        return np.abs(unit.T @ unit)[:3, 3:].mean()

    assert parallel(after) < 0.5 * parallel(before)


def test_equal_terms_compare_equal_so_nothing_is_traced_again():
    model = network()
    assert term_of(model) == term_of(model)
    assert term_of(model) != term_of(model, steps=6)

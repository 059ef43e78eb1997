"""A model run again with some of its weights changed computes only what changes."""

import keras
import numpy as np
import pytest
from zoo import ZOO, build, each, inputs_for, random_selection

import keras_pcp
from keras_pcp.fit.rerun import Segmented
from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import arrange_inputs
from keras_pcp.surgery.masks import masked

L = keras.layers


def in_segments(model, graph, compiling=True):
    """Returns a model in segments, one for each call that reads prunable channels, and the numbers of these calls."""
    traced = program_of(model).trace
    read = {id(model.weights[s.weight]) for group in graph for s in group.slices_of("consume")}
    calls = [
        number
        for number, call in enumerate(traced.calls)
        if any(id(w) in read for w in getattr(call.operation, "weights", ()))
    ]
    return Segmented(traced, calls, [w for w in model.weights if id(w) in read], compiling), calls


def changed_by(model, graph, group):
    """Returns a selection that prunes one group, and the weights that change, {`id`: value}."""
    selection = keras_pcp.Selection({group.name: random_selection(graph, 0).keep[group.name]})
    readers = {s.weight for s in group.slices_of("consume")}
    with masked(model, graph, selection):
        return selection, {id(model.weights[i]): model.weights[i].numpy() for i in readers}


@pytest.mark.parametrize("name", each(ZOO))
def test_a_rerun_with_some_weights_changed_equals_a_whole_run(name):
    model = build(name)
    x, graph = inputs_for(model), keras_pcp.build_graph(model)
    network, calls = in_segments(model, graph)
    assert len(network.segments) == len({0, *calls})
    for rows in (slice(None), slice(2)):  # batches of two sizes
        given = keras.tree.map_structure(lambda a, rows=rows: a[rows], x)
        recording = network.record(arrange_inputs(network.traced, given))
        expected = keras.tree.flatten(model(given, training=False))
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(recording.outputs, expected, strict=True))
        for group in list(graph)[:3]:
            selection, changed = changed_by(model, graph, group)
            with masked(model, graph, selection):
                expected = keras.tree.flatten(model(given, training=False))
            found, ran = network.run(recording, changed)
            assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
            first = min(p.segment.start for p in network.segments if changed.keys() & p.variables.keys())
            assert ran[0].start == first
    assert [p.compute.experimental_get_tracing_count() for p in network.segments if p.segment in ran] == [2] * len(ran)


def open_sizes():
    i = keras.Input((None, None, 3))
    h = L.UpSampling2D(interpolation="bilinear")(L.Conv2D(4, 3, padding="same", name="prunable")(i))
    return keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(3, 3)(h)))), (6, 6, 3)


def fixed_batch():
    i = keras.Input(batch_shape=(4, 5))
    return keras.Model(i, L.Dense(2)(L.Dense(6, activation="relu", name="prunable")(i))), (5,)


@pytest.mark.parametrize("make", [open_sizes, fixed_batch])
def test_samples_may_be_of_any_size_and_number_that_the_model_takes(make):
    model, shape = make()
    graph = keras_pcp.build_graph(model)
    network, _ = in_segments(model, graph)
    for count in (4, 3, 2):
        x = np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")
        recording = network.record(arrange_inputs(network.traced, x))
        selection, changed = changed_by(model, graph, graph["prunable"])
        with masked(model, graph, selection):
            expected = model(x, training=False)
        np.testing.assert_allclose(network.run(recording, changed)[0][0], expected, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compiling", [False, True])
def test_masks_go_from_segment_to_segment(compiling):
    i = keras.Input((6,), dtype="int32")
    h = L.Embedding(9, 4, mask_zero=True)(i)
    h = L.Dense(5, activation="relu", name="prunable")(h)
    h = L.Dense(3, name="reader")(h)
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling1D()(h)))
    x, graph = np.array([[1, 2, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8]]), keras_pcp.build_graph(model)
    network, _ = in_segments(model, graph, compiling)
    recording = network.record(arrange_inputs(network.traced, x))
    np.testing.assert_allclose(recording.outputs[0], model(x), atol=1e-6)
    selection, changed = changed_by(model, graph, graph["prunable"])
    with masked(model, graph, selection):
        expected = model(x)
    np.testing.assert_allclose(network.run(recording, changed)[0][0], expected, atol=1e-6)


def test_a_branch_that_does_not_change_is_not_run_again():
    i = keras.Input((4,))
    branches = [L.Dense(3, name=f"{n}_out")(L.Dense(5, name=n)(i)) for n in "abc"]
    model = keras.Model(i, L.Dense(2, name="last")(L.Concatenate()(branches)))
    graph = keras_pcp.build_graph(model)
    network, _ = in_segments(model, graph)
    recording = network.record(arrange_inputs(network.traced, inputs_for(model)))
    _, ran = network.run(recording, changed_by(model, graph, graph["a"])[1])
    run = {network.traced.calls[n].operation.name for calls in ran for n in range(calls.start, calls.stop)}
    assert {"a_out", "last"} <= run
    assert not {"a", "b", "c", "b_out"} & run

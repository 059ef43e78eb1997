"""A model run again with some of its weights changed computes only what changes."""

import keras
import numpy as np
import pytest
from zoo import ZOO, build, each, inputs_for, random_selection

import keras_pcp
from keras_pcp.fit.rerun import Recording, Rerun
from keras_pcp.graph.trace import arrange_inputs, trace
from keras_pcp.surgery.masks import masked


@pytest.mark.parametrize("name", each(ZOO))
def test_a_rerun_with_some_weights_changed_equals_a_whole_run(name):
    model = build(name)
    x = inputs_for(model)
    graph = keras_pcp.build_graph(model)
    traced = trace(model)
    recording = Recording(traced, arrange_inputs(traced, x))
    expected = keras.tree.flatten(model(x, training=False))
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(recording.outputs, expected, strict=True))
    for group in list(graph)[:3]:
        selection = keras_pcp.Selection({group.name: random_selection(graph, 0).keep[group.name]})
        readers = {id(model.weights[s.weight]) for s in group.slices_of("consume")}
        users = {id(o) for o in traced.operations if any(id(w) in readers for w in getattr(o, "weights", ()))}
        users -= {id(o) for o in traced.operations if isinstance(o, keras.Model)}
        weights = [w for w in model.weights if id(w) in readers]
        rerun = Rerun(traced, users, weights)
        with masked(model, graph, selection):
            values = [w.numpy() for w in weights]
            expected = keras.tree.flatten(model(x, training=False))
        found = [rerun.run(recording, values) for _ in range(8)]  # the last ones are compiled
        assert rerun.runs == 8
        assert "compiled" in vars(rerun)
        for outputs in found:
            assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(outputs, expected, strict=True))
        first = min(n for n, call in enumerate(traced.calls) if id(call.operation) in users)
        assert len(rerun.calls) <= len(traced.calls) - first

"""The search for widths without training, and how it goes on from its checkpoint."""

import json

import keras
import numpy as np
import pytest
from small_fits import compiled, data, network, same_state, state_of

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.fit.run import Run
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.strategies.progressive import Progressive

L = keras.layers


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """Hides a batch normalization, and a weight of its own, so that it stays closed."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.norm = L.BatchNormalization()
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.scale * self.norm(x, training=training)


@pytest.mark.parametrize("attempts", ["fast", "exact"])
def test_a_search_without_training_leaves_the_model_alone(attempts):
    plain = network()
    logits = L.Dense(4)(L.Dropout(0.2)(Block()(plain.layers[-2].output)))
    model = compiled(keras.Model(plain.input, logits))
    model.fit(*data(), epochs=2, verbose=0)
    before, metrics = state_of(model), [v.numpy() for v in model.variables]
    graph = keras_pcp.build_graph(model, on_unknown="freeze")
    selection = keras_pcp.search_widths(
        model,
        max_macs=0.5,
        validation_data=data(64, 1),
        strategy=Progressive(attempts=attempts),
        verbose=False,
        on_unknown="freeze",
    )
    assert same_state(before, state_of(model))
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(metrics, model.variables, strict=True))
    assert count_cost(graph, selection).macs <= 0.5 * count_cost(graph).macs
    small = keras_pcp.prune_model(model, graph, selection)
    assert count_cost(small).macs == count_cost(graph, selection).macs


def test_a_search_goes_on_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    model = compiled()
    model.fit(*data(), epochs=1, verbose=0)
    options = {"max_macs": 0.6, "validation_data": data(64, 1)}
    whole = keras_pcp.search_widths(model, **options, verbose=False)
    file, usual, rounds = tmp_path / "search.json", Run.ask, []

    def interrupted(self, at):
        rounds.append(at)
        if len(rounds) == 4:
            raise KeyboardInterrupt
        return usual(self, at)

    monkeypatch.setattr(Run, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keras_pcp.search_widths(model, **options, checkpoint=file, verbose=False)
    assert len(json.loads(file.read_text())["state"]["rounds"]) == 3
    assert keras_pcp.search_widths(model, **options, checkpoint=file) == whole
    assert "macs" in capsys.readouterr().out
    with pytest.raises(InvalidArgumentError, match="belongs to another search: its limits"):
        keras_pcp.search_widths(model, **{**options, "max_macs": 0.7}, checkpoint=file, verbose=False)
    model.layers[1].set_weights([w * 2 for w in model.layers[1].get_weights()])
    with pytest.raises(InvalidArgumentError, match="its weights differ"):
        keras_pcp.search_widths(model, **options, checkpoint=file, verbose=False)
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        keras_pcp.search_widths(model, **options, checkpoint=tmp_path / "nowhere" / "s.json", verbose=False)


@pytest.mark.slow
def test_several_criteria_may_be_given():
    model = compiled()
    model.fit(*data(), epochs=1, verbose=0)
    selection = keras_pcp.search_widths(
        model, max_macs=0.6, validation_data=data(64, 1), criterion=("l1", "random", "taylor"), verbose=False
    )
    graph = keras_pcp.build_graph(model)
    assert count_cost(graph, selection).macs <= 0.6 * count_cost(graph).macs
    alone = keras_pcp.search_widths(model, max_macs=0.6, validation_data=data(64, 1), verbose=False)
    assert alone != selection
    with pytest.raises(InvalidArgumentError, match="empty"):
        keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=data(64, 1), criterion=())


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_a_search_with_a_refit_works_on_a_copy_and_goes_on_from_its_checkpoint(tmp_path, criterion):
    model = compiled()
    model.fit(*data(), epochs=1, verbose=0)
    before = state_of(model)
    options = {
        "max_macs": 0.5,
        "validation_data": data(64, 1),
        "criterion": criterion,
        "verbose": False,
        "strategy": Progressive(step=0.05),
        "refit_data": data(48, 2),
    }
    found = keras_pcp.search_widths(model, checkpoint=tmp_path / "state.json", **options)
    assert same_state(before, state_of(model))
    graph = keras_pcp.build_graph(model)
    assert count_cost(graph, found).macs <= 0.5 * count_cost(graph).macs
    assert keras_pcp.search_widths(model, checkpoint=tmp_path / "state.json", **options) == found
    saved = json.loads((tmp_path / "state.json").read_text())
    assert len(saved["state"]["rounds"]) > 2
    other = options | {"refit_data": data(48, 3)}
    with pytest.raises(InvalidArgumentError, match="refit_data"):
        keras_pcp.search_widths(model, checkpoint=tmp_path / "state.json", **other)


def test_a_checkpoint_belongs_to_its_labels_and_metrics(tmp_path):
    keras.backend.clear_session()  # so that names of layers are the same
    model, (x, y) = compiled(), data(64, 1)
    options = {"max_macs": 0.5, "checkpoint": tmp_path / "search.json", "verbose": False}
    keras_pcp.search_widths(model, validation_data=(x, y), **options)
    with pytest.raises(InvalidArgumentError, match="its samples differ"):
        keras_pcp.search_widths(model, validation_data=(x, 3 - y), **options)
    keras.backend.clear_session()
    other = compiled(metrics=[])
    with pytest.raises(InvalidArgumentError, match="its monitor, loss and metrics differ"):
        keras_pcp.search_widths(other, validation_data=(x, y), **options)

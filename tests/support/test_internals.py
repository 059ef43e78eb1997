"""The contract with Keras: what `internals` relies on still means what it meant."""

import signal

import keras
import numpy as np
import pytest
from zoo import WithoutTraining, build, inputs_for

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.support import internals
from keras_pcp.support.changes import Journal

L = keras.layers


def small():
    i = keras.Input((4,))
    return keras.Model(i, L.Dense(2, name="out")(L.Dense(3, name="hidden")(i)))


def test_nodes_come_in_execution_order_with_their_arguments():
    model = small()
    nodes = internals.nodes(internals.functional_of(model))
    assert [n.operation.name for n in nodes] == ["hidden", "out"]
    args, kwargs = internals.call_arguments(nodes[1])
    assert args[0] is model.get_layer("hidden").output
    assert kwargs == {}
    assert internals.producing_operation(args[0]) is model.get_layer("hidden")


def test_calls_are_remembered_by_the_layer_that_is_called_and_by_those_before_it():
    model = small()
    hidden, out = (model.get_layer(name) for name in ("hidden", "out"))
    nodes = internals.nodes(internals.functional_of(model))
    assert internals.remembered(hidden) == ([nodes[0]], [nodes[1]])
    assert internals.remembered(out) == ([nodes[1]], [])
    tensor = out(hidden.output)
    later = internals.node_of(tensor)
    assert internals.remembered(hidden)[1] == internals.remembered(out)[0] == [nodes[1], later]
    for calls in (internals.remembered(hidden)[1], internals.remembered(out)[0]):
        calls[:] = [nodes[1]]
    assert internals.node_of(model.output) is nodes[1]
    assert internals.node_of(keras.KerasTensor((None, 3))) is None
    assert internals.producing_operation(keras.KerasTensor((None, 3))) is None
    again = keras.Model(model.input, out(hidden.output))  # a call that was taken back leaves nothing behind
    assert len(internals.nodes(again)) == 2
    assert keras.Model.from_config(again.get_config()).output_shape == (None, 2)


def test_a_model_that_was_traced_runs_when_its_calls_are_taken_back():
    model = small()
    expected = model(np.ones((1, 4)))
    for layer in model.layers:
        for calls in internals.remembered(layer):
            calls.clear()
    assert np.array_equal(model(np.ones((1, 4))), expected)
    assert [n.operation.name for n in internals.nodes(model)] == ["hidden", "out"]


def test_a_frozen_model_leaves_its_layers_as_they_are():
    model = small()
    part = keras.Model(model.input, model.get_layer("hidden").output)
    internals.freeze(part)
    assert (part.trainable, part.trainable_variables) == (False, [])
    assert len(model.trainable_variables) == 4


def test_a_sequential_model_has_the_functional_graph_it_runs():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    functional = internals.functional_of(model)
    assert [n.operation for n in internals.nodes(functional)] == model.layers
    assert internals.functional_of(keras.Sequential([L.Dense(3)])) is None


def test_a_functional_subclass_with_a_call_of_its_own_has_no_graph():
    class Own(keras.Model):
        def call(self, x, training=None):
            return 2 * super().call(x)

    i = keras.Input((4,))
    assert internals.functional_of(Own(i, L.Dense(2)(i))) is None


def test_a_resized_variable_stays_the_same_object_with_the_new_value():
    layer = L.Dense(3)
    layer.build((None, 4))
    kernel = layer.kernel
    internals.resize_variable(kernel, np.ones((2, 3), "float32"), Journal())
    assert layer.kernel is kernel
    assert tuple(kernel.shape) == (2, 3)
    assert np.array_equal(kernel.numpy(), np.ones((2, 3)))
    kernel.assign(np.zeros((2, 3)))
    assert layer.get_weights()[0].shape == (2, 3)


def test_a_written_attribute_is_what_the_config_saves():
    layer = L.Reshape((2, 6))
    internals.write(layer, ("target_shape", 1), 5)
    assert layer.get_config()["target_shape"] == (2, 5)
    operation = keras.ops.reshape(keras.KerasTensor((None, 12)), (-1, 2, 6))._keras_history.operation
    internals.write(operation, ("newshape", 2), 5)
    assert list(operation.get_config()["newshape"]) == [-1, 2, 5]
    assert list(operation.newshape) == [-1, 2, 5]


def test_a_written_argument_is_what_the_call_uses():
    i = keras.Input((8,))
    model = keras.Model(i, i[:, 1:7])
    node = internals.nodes(model)[0]
    internals.write_argument(node, ("args", 1, 1, "stop"), 4)
    assert model(np.arange(8.0)[None]).shape == (1, 3)


def test_slots_are_found_with_their_variables():
    model = build("residual")
    model.compile(keras.optimizers.Adam(), "mse")
    model.train_on_batch(inputs_for(model), np.zeros((3, 4)))
    found = list(internals.slots(model.optimizer, model.weights))
    assert len(found) == 2 * len(model.trainable_variables)
    for index, name, slot in found:
        assert slot.shape == model.weights[index].shape
        assert model.weights[index].path.replace("/", "_") in slot.name
        assert name in ("_momentums", "_velocities")


def test_variables_that_are_not_slots_are_refused():
    class Odd(keras.optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.extra = self.add_variable((5,), name="extra")

    optimizer = Odd()
    optimizer.build(small().trainable_variables)
    with pytest.raises(UnsupportedModelError, match="extra"):
        list(internals.slots(optimizer, []))


def test_traces_of_every_model_that_shares_a_layer_are_dropped():
    model, other = small(), small()
    part = keras.Model(model.input, model.get_layer("hidden").output)
    for m in (model, part, other):
        m.predict(np.zeros((1, 4)), verbose=0)
    users = internals.users([model.get_layer("hidden")], [])[0]
    assert {id(m) for m in users} == {id(model), id(part)}
    internals.forget_traces(users, Journal())
    assert model.predict_function is None
    assert part.predict_function is None
    assert other.predict_function is not None


def test_recorded_build_shapes_follow_the_call():
    a, b = keras.Input((5, 4)), keras.Input((6, 3))
    layer = L.MultiHeadAttention(2, 2)
    node = internals.nodes(keras.Model([a, b], layer(a, b)))[0]
    a_shape = a.shape
    internals.set_size(b, 2, 7, Journal())
    internals.refresh_layer(layer, node, Journal())
    config = layer.get_build_config()["shapes_dict"]
    assert tuple(config["query_shape"]) == a_shape
    assert tuple(config["value_shape"]) == (None, 6, 7)


def test_resized_variables_are_found_again_and_stay_excluded_from_weight_decay():
    model = small()
    optimizer = keras.optimizers.AdamW()
    kernel = model.get_layer("hidden").kernel
    optimizer.exclude_from_weight_decay([kernel])
    optimizer.build(model.trainable_variables)
    assert optimizer._use_weight_decay(kernel) is False
    keys = internals.variable_keys([optimizer])
    internals.resize_variable(kernel, np.ones((4, 2), "float32"), Journal())
    internals.rekey(keys, Journal())
    assert optimizer._get_variable_index(kernel) == 0
    assert optimizer._use_weight_decay(kernel) is False
    assert optimizer._use_weight_decay(model.get_layer("out").kernel) is True
    internals.rekey(keys, Journal())
    assert optimizer._get_variable_index(kernel) == 0


def test_losses_see_a_mask_that_is_attached():
    x = np.array([[1, 2, 0], [3, 0, 0]])
    assert np.array_equal(internals.mask_of(L.Embedding(4, 2, mask_zero=True)(x)), x != 0)
    assert internals.mask_of(L.Embedding(4, 2)(x)) is None
    predicted = internals.with_mask(np.array([[1.0], [9.0]], "float32"), np.array([True, False]))
    assert float(keras.losses.MeanAbsoluteError()(np.zeros((2, 1)), predicted)) == pytest.approx(1)
    assert float(
        keras.losses.MeanAbsoluteError()(np.zeros((2, 1)), internals.with_mask(predicted.numpy(), None))
    ) == pytest.approx(5)


def test_a_loss_of_a_model_s_own_need_not_know_training():
    i = keras.Input((3,))
    outputs = L.Dense(1)(i)
    usual, own = keras.Model(i, outputs), WithoutTraining(i, outputs)
    y, predicted = np.zeros((2, 1)), np.ones((2, 1))
    for model, expected in ((usual, 1.0), (own, 2.0)):
        model.compile(loss="mse")
        assert float(internals.loss_of(model, None, y, predicted, None)) == pytest.approx(expected)


def test_metrics_of_keras_say_whether_higher_is_better():
    metrics = keras.metrics
    assert internals.direction_of(metrics.CosineSimilarity()) == "up"
    assert internals.direction_of(metrics.MeanAbsoluteError()) == "down"
    assert internals.direction_of(metrics.Mean()) is None


def test_what_a_function_does_to_variables_is_recorded_and_has_no_effect():
    layer, x = L.Dense(2), keras.Input((3,))
    layer.build((None, 3))
    kernel = layer.kernel.numpy()

    def run():
        layer.bias.assign(layer.bias + 1.0)
        return L.BatchNormalization()(L.Dropout(0.5)(layer(x)))

    output, found = internals.recorded(run)
    assert isinstance(output, keras.KerasTensor)
    assert found == ["AssignVariableOp"]
    assert np.array_equal(layer.kernel.numpy(), kernel)
    assert not layer.bias.numpy().any()


def test_the_attributes_of_keras_are_known_and_losses_are_kept_apart():
    known = internals.keras_attributes()
    assert {"_inbound_nodes", "built", "_metrics"} <= known
    layer = L.Dense(2)
    layer(np.ones((1, 2)))
    layer.add_loss(keras.ops.ones(()))
    assert "_losses" not in known
    assert len(vars(layer)["_losses"]) == 1
    assert not {"kernel", "units", "activation"} & known


def test_a_stateless_scope_that_is_interrupted_or_fails_leaves_nothing_behind():
    def variables(*initializers):
        return [keras.Variable(i, shape=(2,)) for i in initializers]

    def interrupt(shape, dtype=None):
        signal.raise_signal(signal.SIGINT)
        return keras.ops.ones(shape, dtype)

    def fail(shape, dtype=None):
        raise MemoryError("on purpose")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), internals.stateless():
            found = variables("ones", interrupt, "ones")
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(np.array_equal(v.numpy(), [1, 1]) for v in found)
    with pytest.raises(MemoryError, match="on purpose"), internals.stateless():
        variables("ones", fail, "ones")
    with internals.stateless(zip(found, np.zeros((3, 2)), strict=True)) as scope:
        assert float(found[0][0]) == 0
        found[1].assign([3, 3])
        assert np.array_equal(scope.get_current_value(found[1]), [3, 3])
    assert all(np.array_equal(v.numpy(), [1, 1]) for v in found)
    with internals.stateless():
        made = variables("ones")[0]
    assert np.array_equal(made.numpy(), [1, 1])

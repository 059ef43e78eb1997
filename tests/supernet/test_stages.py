"""Where networks are cut into stages, and that stages compute what the network computes."""

import keras
import numpy as np
import pytest
from zoo import ZOO, assert_close, build, each, inputs_for, outputs_of

import keras_pcp
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.cost import call_macs
from keras_pcp.graph.program import program_of
from keras_pcp.graph.segments import Called, segment
from keras_pcp.graph.trace import arrange_inputs
from keras_pcp.supernet.stages import stages

L = keras.layers


def cut(model, num_stages, cut_after=()):
    program = program_of(model)
    macs = np.nan_to_num(call_macs(keras_pcp.build_graph(model), program))
    return program, stages(program, macs, num_stages, cut_after)


def ends(model, num_stages, cut_after=()):
    """Returns the layers whose outputs leave the stages, apart from the last stage."""
    program, found = cut(model, num_stages, cut_after)
    made = {i: call.operation.name for call in program.trace.calls for i in call.outputs if call.operation}
    return [[made[i] for i in stage.outputs] for stage in found[:-1]]


def conv(x, filters, strides=1, activation="relu", name=None, kernel=3):
    x = L.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=name)(x)
    x = L.BatchNormalization(name=name and f"{name}_bn")(x)
    return L.ReLU(name=name and f"{name}_relu")(x) if activation else x


def residual_network():
    x = inputs = keras.Input((16, 16, 3))
    x = conv(x, 8, name="stem")
    for stage, filters in enumerate((8, 16, 32)):
        for block in range(2):
            strides = 2 if stage and not block else 1
            y = conv(conv(x, filters, strides), filters, activation=None)
            x = L.Conv2D(filters, 1, strides)(x) if strides > 1 else x
            x = L.ReLU(name=f"end_{stage}_{block}")(L.Add()([x, y]))
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def mobile_network():
    x = inputs = keras.Input((32, 32, 3))
    x = conv(x, 8, 2, name="stem")
    for number, (filters, strides) in enumerate(((8, 1), (12, 2), (12, 1), (16, 2), (16, 1))):
        y = conv(x, 4 * x.shape[-1], kernel=1)
        y = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3, strides, padding="same")(y)))
        y = conv(y, filters, activation=None, name=f"project_{number}", kernel=1)
        x = L.Add(name=f"add_{number}")([x, y]) if x.shape == y.shape else y
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def test_a_residual_network_is_cut_at_the_ends_of_its_blocks():
    assert ends(residual_network(), 3) == [["end_0_1"], ["end_1_1"]]


def test_a_network_of_bottleneck_blocks_is_cut_at_the_bottlenecks():
    assert ends(mobile_network(), 3) == [["add_0"], ["add_2"]]


def test_of_several_cuts_the_ones_are_taken_by_which_the_largest_stage_is_small():
    model = residual_network()
    program, found = cut(model, 2)
    macs = call_macs(keras_pcp.build_graph(model), program)
    assert ends(model, 2) in ([["end_0_1"]], [["end_1_1"]])
    other = {"end_0_1": ["end_1_1"], "end_1_1": ["end_0_1"]}[ends(model, 2)[0][0]]
    _, otherwise = cut(model, 2, other)
    largest = [max(macs[s.start : s.stop].sum() for s in each) for each in (found, otherwise)]
    assert largest[0] <= largest[1]


def test_cuts_can_be_named_and_then_several_tensors_may_be_alive():
    model = residual_network()
    assert ends(model, 7, ["stem_relu"]) == [["stem_relu"]]
    model = build("u_net")
    [alive] = ends(model, 1, [next(x.name for x in model.layers if isinstance(x, L.MaxPooling2D))])
    assert len(alive) == 2


@pytest.mark.parametrize("name", each(sorted(ZOO)))
def test_stages_in_a_row_compute_what_the_network_computes(name):
    model = build(name)
    program, x = program_of(model), inputs_for(model)
    names = [program.name_of(c.operation) for c in program.trace.calls if c.operation is not None]
    made = [i for call in program.trace.calls for i in call.outputs]
    cuts = names[len(names) // 2 :][:1] if len(set(made)) == len(made) else []
    values = dict(zip(program.trace.inputs, arrange_inputs(program.trace, x), strict=True))
    for stage in stages(program, [1.0] * len(program.trace.calls), 1, cuts):
        values |= Called(program.trace, stage)({i: values[i] for i in stage.inputs}, training=False)
    assert_close([np.asarray(values[i]) for i in program.trace.outputs], outputs_of(model, x), 1e-6)


def test_the_whole_network_is_a_stage_from_the_inputs_to_the_outputs():
    trace = program_of(build("two_in_two_out")).trace
    assert set(segment(trace).inputs) == set(trace.inputs)
    assert set(segment(trace).outputs) == set(trace.outputs)


@pytest.mark.parametrize(
    ("num_stages", "cut_after", "message"),
    [(9, (), "num_stages must be at most 3"), (2, ["nowhere"], "cut_after names 'nowhere'")],
)
def test_cuts_that_do_not_exist_are_refused(num_stages, cut_after, message):
    with pytest.raises(InvalidArgumentError, match=message):
        cut(residual_network(), num_stages, cut_after)


def test_no_cut_inside_a_nested_model_that_is_called_twice():
    model = build("nested_twice")
    inner = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    with pytest.raises(InvalidArgumentError, match="calls several times"):
        cut(model, 1, [inner.layers[1].name])


def test_a_cut_where_a_mask_is_handed_on_is_refused():
    i = keras.Input((6,), dtype="int32")
    h = L.Dense(8, name="masked")(L.Embedding(9, 4, mask_zero=True)(i))
    h = L.Dense(8, name="pooled")(L.GlobalAveragePooling1D()(h))
    model = keras.Model(i, L.Dense(2)(h))
    with pytest.raises(InvalidArgumentError, match="where a mask is handed on"):
        cut(model, 2, ["masked"])
    assert len(cut(model, 2, ["pooled"])[-1]) == 2

"""Rules and the graph they give, on models whose groups are worked out by hand."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from zoo import Odd, build, random_selection

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.build import check_fits
from keras_pcp.graph.channels import CONSUME, FOLLOW
from keras_pcp.graph.labels import Labels
from keras_pcp.graph.narrowing import narrowed


def widths(model, **options):
    return {g.name: g.num_channels for g in keras_pcp.build_graph(model, **options)}


def frozen(model, **options):
    return {f.layer: (f.num_channels, f.reason) for f in keras_pcp.build_graph(model, **options).frozen}


def after_conv(function, filters=6, shape=(6, 6, 3)):
    """A model that passes a convolution's channels through `function` into a consumer."""
    i = keras.Input(shape)
    x = function(L.Conv2D(filters, 1, name="conv")(i))
    x = L.Dense(3, name="head")(L.Flatten()(x))
    return keras.Model(i, x)


def test_the_output_is_frozen_and_the_rest_is_not():
    model = after_conv(L.ReLU())
    assert widths(model) == {"conv": 6}
    assert frozen(model) == {"head": (3, "output of the model")}


def test_flatten_gives_every_channel_one_row_per_position():
    graph = keras_pcp.build_graph(after_conv(L.ReLU()))
    (rows,) = graph["conv"].slices_of(CONSUME)
    assert rows.layer == "head"
    assert sorted(rows.positions[rows.channels == 2].tolist()) == list(range(2, 216, 6))


def test_a_residual_stage_is_one_group():
    groups = keras_pcp.build_graph(build("residual"))
    assert [(g.num_channels, len(g.producers)) for g in groups] == [(8, 2), (8, 1), (12, 1), (12, 3), (12, 1)]


def test_batch_normalization_after_a_concatenation_is_cut_by_each_group():
    i = keras.Input((4, 4, 2))
    a, b = L.Conv2D(3, 1, name="a")(i), L.Conv2D(2, 1, name="b")(i)
    x = L.BatchNormalization(name="bn")(L.Concatenate()([a, i, b, a]))
    graph = keras_pcp.build_graph(keras.Model(i, L.Conv2D(4, 1)(x)))
    gamma = {s.layer: s for s in graph["a"].slices_of(FOLLOW, "scale")}["bn"]
    assert gamma.positions.tolist() == [0, 1, 2, 7, 8, 9]
    assert gamma.channels.tolist() == [0, 1, 2, 0, 1, 2]
    assert graph["b"].slices_of(FOLLOW, "scale")[0].positions.tolist() == [5, 6]


def test_channels_beside_an_unknown_number_of_others_stay():
    i, unknown = keras.Input((3,)), keras.Input((None,))
    both = L.Concatenate(name="both")([L.Dense(4, name="made")(i), unknown])
    assert frozen(keras.Model([i, unknown], ops.sum(both, axis=-1)))["made"][0] == 4


def test_adding_a_fixed_tensor_freezes_and_says_why():
    i = keras.Input((4, 4, 3))
    model = keras.Model(i, L.Conv2D(2, 1)(L.Add(name="sum")([i, L.Conv2D(3, 1, name="conv")(i)])))
    count, reason = frozen(model)["conv"]
    assert count == 3
    assert "'sum' (Add)" in reason


@pytest.mark.parametrize("constant", [np.ones((6,), "float32"), np.ones((1, 1, 1, 6), "float32")])
def test_a_constant_per_channel_freezes(constant):
    assert "conv" in frozen(after_conv(lambda x: x * constant))


@pytest.mark.parametrize("constant", [2.0, np.float32(3), np.ones((6, 6, 1), "float32")])
def test_a_constant_that_is_broadcast_over_channels_does_not(constant):
    assert widths(after_conv(lambda x: x * constant)) == {"conv": 6}


def test_a_single_channel_broadcast_over_many_ties_nothing():
    model = build("spatial_gate")
    assert sorted(widths(model).values()) == [5, 6]
    assert any("broadcasts this single channel" in reason for _, reason in frozen(model).values())


def test_a_one_channel_convolution_is_not_taken_for_a_depthwise_one():
    i = keras.Input((6, 6, 1))
    model = keras.Model(i, L.Conv2D(2, 1)(L.Conv2D(6, 3, name="conv")(i)))
    assert widths(model) == {"conv": 6}


def test_a_dense_layer_before_a_reshape_is_cut_in_runs():
    graph = keras_pcp.build_graph(build("transposed"))
    group = next(iter(graph))
    assert group.num_channels == 4
    kernel = group.slices_of("produce", "kernel")[0]
    assert kernel.positions[kernel.channels == 1].tolist() == list(range(1, 36, 4))


@pytest.mark.parametrize("pads", [(2, 2), (0, 3), (5, 0)])
def test_a_padded_channel_goes_with_those_that_it_is_added_to(pads):
    i = keras.Input((4, 4, 3))
    x = L.Conv2D(4, 1, name="narrow")(i)
    wide = ops.pad(x, ((0, 0), (0, 0), (0, 0), pads))
    y = L.Add()([wide, L.Conv2D(4 + sum(pads), 3, padding="same", name="wide")(x)])
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(y)))
    graph = keras_pcp.build_graph(model)
    assert {g.name: (g.num_channels, g.producers) for g in graph} == {
        "narrow": (4, ("narrow", "wide")),
        "wide": (sum(pads), ("wide",)),
    }
    keep = {g.name: np.ones(g.num_channels, bool) for g in graph}
    for group in graph:
        kernel = next(s for s in group.slices_of("produce", "kernel") if s.layer == "wide")
        keep[group.name][kernel.channels[np.isin(kernel.positions, (0, 3 + sum(pads)))]] = False  # first and last
    small = keras_pcp.prune_model(model, graph, keras_pcp.Selection(keep))
    pad = next(op for op in small.operations if type(op).__name__ == "Pad")
    assert tuple(pad.pad_width[-1]) == tuple(max(0, amount - 1) for amount in pads)
    assert small.get_layer("wide").filters == 2 + sum(pads)
    assert small.get_layer("narrow").filters == 4 - (not pads[0]) - (not pads[1])


def test_a_padded_channel_that_nothing_is_added_to_stays():
    i = keras.Input((4, 4, 3))
    x = ops.pad(L.Conv2D(4, 1, name="conv")(i), ((0, 0), (0, 0), (0, 0), (1, 2)))
    model = keras.Model(i, L.Conv2D(2, 1, name="reader")(x))
    graph = keras_pcp.build_graph(model)
    assert [(g.name, g.num_channels) for g in graph] == [("conv", 4)]
    small = keras_pcp.prune_model(model, graph, keras_pcp.Selection({"conv": np.arange(4) < 1}))
    assert small.get_layer("reader").kernel.shape == (1, 1, 4, 2)


def test_one_amount_for_all_axes_stays():
    i = keras.Input((4, 4, 3))
    x = L.Conv2D(4, 1, name="narrow")(i)
    y = L.Conv2D(6, 3, padding="valid", name="wide")(ops.pad(L.Conv2D(4, 1)(i), ((0, 0), (2, 2), (2, 2), (0, 0))))
    with_batch = ops.pad(x, 1)[1:-1, :, :, :]
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(L.Add()([with_batch, y]))))
    graph = keras_pcp.build_graph(model)
    assert graph["narrow"].num_channels == 4
    assert any(f.layer == "wide" and f.num_channels == 2 for f in graph.frozen)


@pytest.mark.parametrize(
    ("function", "filters"),
    [
        (lambda x: ops.sum(x, axis=-1, keepdims=True), 6),
        (lambda x: L.Reshape((6, 6 * 6))(x), 6),
        (lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))), 6),
        (lambda x: L.Dot(axes=-1)([L.GlobalAveragePooling2D()(x), L.GlobalMaxPooling2D()(x)]), 6),
        (lambda x: L.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])(x), 6),
        (lambda x: x[..., ::2], 6),
        (lambda x: x[..., -3:], 6),
        (lambda x: L.MaxPooling2D(2)(L.Permute((3, 1, 2))(x)), 6),
        (lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)), mode="reflect"), 6),
        (lambda x: L.Dropout(0.5, noise_shape=(None, 1, 1, 6))(x), 6),
    ],
)
def test_what_cannot_be_followed_is_frozen_or_still_exact(function, filters):
    """Whatever a rule makes of these, the pruned model must compute what the masked model computes."""
    keras.utils.set_random_seed(0)
    model = after_conv(function, filters)
    graph = keras_pcp.build_graph(model)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    assert all(f.reason for f in graph.frozen)
    for group in graph:
        keep = np.arange(group.num_channels) % 2 == 0
        selection = keras_pcp.Selection({group.name: keep})
        with keras_pcp.masked(model, graph, selection):
            expected = np.asarray(model(x))
        found = np.asarray(keras_pcp.prune_model(model, graph, selection)(x))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.sum(x, axis=-1, keepdims=True),
        lambda x: L.Dot(axes=-1)([L.GlobalAveragePooling2D()(x), L.GlobalMaxPooling2D()(x)]),
        lambda x: L.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])(x),
        lambda x: x[..., ::2],
        lambda x: x[..., -3:],
        lambda x: L.MaxPooling2D(2)(L.Permute((3, 1, 2))(x)),
    ],
)
def test_these_are_frozen(function):
    assert widths(after_conv(function)) == {}


@pytest.mark.parametrize("layer", [Odd(name="odd"), L.Activation(lambda t: ops.flip(t, -1), name="odd")])
def test_an_unknown_layer_is_an_error_that_names_it_and_the_ways_out(layer):
    model = after_conv(layer)
    with pytest.raises(UnsupportedModelError, match=r"'odd' \(.*register_rule.*on_unknown='freeze'"):
        keras_pcp.build_graph(model)


def test_an_unknown_layer_can_be_frozen_with_a_reason():
    i = keras.Input((6, 6, 3))
    x = Odd(name="odd")(L.Conv2D(6, 1, name="before")(i))
    x = L.Conv2D(5, 1, name="after")(x)
    model = keras.Model(i, L.Conv2D(2, 1, name="out")(x))
    assert widths(model, on_unknown="freeze") == {"after": 5}
    count, reason = frozen(model, on_unknown="freeze")["before"]
    assert count == 6
    assert "'odd' (Odd)" in reason


def test_a_subclass_with_a_call_of_its_own_needs_a_rule_of_its_own():
    class Plain(L.Conv2D):
        pass

    class Changed(L.Conv2D):
        def call(self, x):
            return super().call(x) + 1

    i = keras.Input((6, 6, 3))
    assert len(widths(keras.Model(i, L.Conv2D(2, 1)(Plain(4, 1)(i))))) == 1
    with pytest.raises(UnsupportedModelError, match="Changed"):
        widths(keras.Model(i, L.Conv2D(2, 1)(Changed(4, 1)(i))))


def test_a_registered_rule_is_used():
    class Doubled(L.Layer):
        def call(self, x):
            return 2 * x

    keras_pcp.register_rule(Doubled)(lambda site: site.inputs[0])
    assert widths(after_conv(Doubled())) == {"conv": 6}
    with pytest.raises(keras_pcp.errors.InvalidArgumentError, match="classes of Keras layers"):
        keras_pcp.register_rule("Doubled")(lambda site: None)


def test_channels_that_have_an_axis_alone_are_a_group():
    """A rule can pass on some channels. Whatever is pruned, the axis must not become empty."""

    class FirstThree(L.Layer):
        def call(self, x):
            return x[..., :3]

    @keras_pcp.register_rule(FirstThree)
    def first_three(site):
        return Labels(site.inputs[0].axis, site.inputs[0].ids[:3])

    i = keras.Input((6, 6, 3))
    x = L.Conv2D(8, 1, name="conv")(i)
    model = keras.Model(i, L.Dense(2)(L.Concatenate()([L.Flatten()(L.Conv2D(2, 1)(y)) for y in (x, FirstThree()(x))])))
    assert {g.name: g.num_channels for g in keras_pcp.build_graph(model) if g.producers == ("conv",)} == {
        "conv": 3,
        "conv#2": 5,
    }


def test_a_rule_that_names_the_wrong_number_of_channels_is_refused():
    class Scaled(L.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1] + 1,), name="scale")

        def call(self, x):
            return x * self.scale[1:]

    @keras_pcp.register_rule(Scaled)
    def scaled(site):
        site.follow(site.operation.scale, 0, site.inputs[0].ids, "scale")
        return site.inputs[0]

    with pytest.raises(UnsupportedModelError, match="7 positions, but 6"):
        keras_pcp.build_graph(after_conv(Scaled()))


def test_frozen_layers_are_frozen_and_unknown_names_refused():
    model = build("residual")
    name = model.layers[1].name
    assert frozen(model, frozen_layers=[name])[name] == (8, "named in frozen_layers")
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        keras_pcp.build_graph(model, frozen_layers=["nowhere"])
    with pytest.raises(InvalidArgumentError, match="on_unknown"):
        keras_pcp.build_graph(model, on_unknown="guess")


def test_a_model_without_a_graph_is_refused():
    with pytest.raises(UnsupportedModelError, match="has no graph yet"):
        keras_pcp.build_graph(keras.Sequential([L.Dense(3)]))


def test_unknown_heights_and_widths_are_no_obstacle():
    i = keras.Input((None, None, 3))
    x = L.Conv2D(8, 3, name="conv")(i)
    model = keras.Model(i, L.Dense(2)(L.GlobalAveragePooling2D()(L.ReLU()(x))))
    assert widths(model) == {"conv": 8}
    assert np.isnan(keras_pcp.count_cost(model).macs)


def test_reshape_with_unknown_sizes_is_followed_only_where_it_is_certain():
    i = keras.Input((None, 4, 3))
    x = L.Conv2D(6, 1, name="conv")(i)
    certain = keras.Model(i, L.Dense(2)(L.Reshape((-1, 6))(x)))
    assert widths(certain) == {"conv": 6}
    mixed = keras.Model(i, L.Dense(2)(L.Reshape((-1, 12))(x)))
    assert set(widths(mixed)) <= {"conv"}
    swapped = keras.Model(i, ops.mean(L.Dense(2)(ops.reshape(x, (-1, 4, 6))), axis=0, keepdims=True))
    assert widths(swapped) == {"conv": 6}


def test_the_graph_prints_its_groups_and_what_is_frozen():
    text = str(keras_pcp.build_graph(after_conv(L.ReLU())))
    assert "conv" in text
    assert "3 channels of 1 layer: output of the model\n    head" in text


def two_paths(second_too):
    """Two layers of equal shapes, of which one or both are read by the last layer."""
    i = keras.Input((4, 4, 3))
    a, b = L.Conv2D(6, 1, name="a")(i), L.Conv2D(6, 1, name="b")(i)
    x = L.Add()([a, b if second_too else a])
    return keras.Model(i, [L.Conv2D(2, 1)(y) for y in (x, a, b)])


def one_path(middle):
    i = keras.Input((4, 4, 6))
    return keras.Model(i, L.Conv2D(2, 1)(middle(L.Conv2D(6, 1, name="a")(i))))


WRONG = {
    "wiring": (lambda: two_paths(True), lambda: two_paths(False)),
    "wiring, pruned": (lambda: one_path(L.ReLU()), lambda: one_path(lambda x: L.Add()([x, x]))),
    "class": (lambda: one_path(L.Conv2D(6, 1)), lambda: one_path(L.Conv2DTranspose(6, 1))),
    "class without weights": (lambda: one_path(L.ReLU()), lambda: one_path(L.Softmax())),
    "axis": (lambda: one_path(L.Softmax(-1)), lambda: one_path(L.Softmax(1))),
    "strides": (lambda: one_path(L.Conv2D(6, 1)), lambda: one_path(L.Conv2D(6, 1, strides=2))),
    "activation": (lambda: one_path(L.Conv2D(6, 1)), lambda: one_path(L.Conv2D(6, 1, activation="softmax"))),
    "sharing": (
        lambda: one_path(lambda x: (d := L.DepthwiseConv2D(1))(d(x))),
        lambda: one_path(lambda x: L.DepthwiseConv2D(1)(L.ReLU()(x))),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_graph_of_another_model_with_the_same_shapes_is_refused(name):
    other, model = (make() for make in WRONG[name])
    assert [w.shape for w in other.weights] == [w.shape for w in model.weights]
    graph = keras_pcp.build_graph(other)
    some = keras_pcp.Selection({g.name: np.arange(g.num_channels) > 0 for g in graph})
    assert some.removed()
    with pytest.raises(InvalidArgumentError, match=r"built from another model .*call build_graph\(model\)"):
        keras_pcp.score_channels(model, graph)
    for use in (keras_pcp.prune_model, keras_pcp.shrink, lambda *given: keras_pcp.masked(*given).__enter__()):
        with pytest.raises(InvalidArgumentError, match="built from another model"):
            use(model, graph, some)


def test_a_graph_fits_copies_of_its_model_and_the_narrowed_graph_the_pruned_model(tmp_path):
    for name in ("residual", "slicing", "nested", "attention"):
        model = build(name)
        graph = keras_pcp.build_graph(model)
        half = random_selection(graph, 0)
        model.save(tmp_path / "model.keras")
        for same in (keras.models.load_model(tmp_path / "model.keras"), keras.models.clone_model(model)):
            check_fits(same, graph)
        small = narrowed(graph, half)
        check_fits(keras_pcp.prune_model(model, graph, half), small)
        keras_pcp.shrink(model, graph, half)
        check_fits(model, small)
        assert keras_pcp.build_graph(model).fingerprint == graph.fingerprint


@pytest.mark.parametrize(
    "layer", [L.LSTM(3), L.GRU(3), L.SimpleRNN(3), L.RNN(L.GRUCell(3)), L.Bidirectional(L.LSTM(3)), L.ConvLSTM1D(3, 1)]
)
def test_a_recurrent_layer_is_refused_with_the_true_reason(layer):
    i = keras.Input((6, 4, 2) if isinstance(layer, L.ConvLSTM1D) else (6, 4))
    with pytest.raises(
        UnsupportedModelError, match=r"\(\w+\) has no rule, and cannot be opened: it is recurrent"
    ) as error:
        keras_pcp.build_graph(keras.Model(i, layer(i)))
    assert "None" not in str(error.value)


def test_a_wrapper_is_shown_the_network_in_it_and_how_to_make_a_graph_of_a_call():
    class Wrapper(keras.Model):
        def __init__(self):
            super().__init__()
            self.generator = after_conv(L.ReLU())

        def call(self, x):
            return 2.0 * self.generator(x)

    wrapper = Wrapper()
    with pytest.raises(UnsupportedModelError, match=r"such as model\.generator\..*keras\.Model\(x, model\.call\(x\)\)"):
        keras_pcp.build_graph(wrapper)
    x = keras.Input((6, 6, 3))
    assert widths(keras.Model(x, wrapper.call(x))) == widths(wrapper.generator) == {"conv": 6}

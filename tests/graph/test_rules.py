"""What rules have to say of the weights of their layer, what is counted without a rule, and the check of custom rules."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, LimitError, UnsupportedModelError
from keras_pcp.graph.counting import _COUNTS
from keras_pcp.graph.delivered import delivered_graph
from keras_pcp.graph.rules import _LAYER_RULES
from keras_pcp.testing import check_rule


def cost_of(layer, *shapes, call=None):
    """The cost of a model of one layer."""
    inputs = [keras.Input(shape) for shape in shapes]
    outputs = call(layer, *inputs) if call else layer(inputs[0])
    return keras_pcp.count_cost(keras.Model(inputs, outputs))


def any_size():
    """A convolution on images of any size, then two classes."""
    i = keras.Input((None, None, 3))
    x = ops.relu(L.Conv2D(4, 3, strides=2, padding="same", name="inner")(i))
    return keras.Model(i, L.Dense(2, name="classes")(ops.mean(x, axis=(1, 2))))


# An image of 6x6 gives 3x3 positions in `any_size`: 9 * (3*3*3 * 4) in the convolution, 4 * 2 in the dense layer.
ANY_SIZE_ON_6X6 = 9 * 108 + 8

# Inputs of 5 steps with 3 features and states of 4: a step multiplies the input by (3, 4) and the state by (4, 4), once for
# each gate. LSTM has 4 gates, GRU 3.
STEP = 3 * 4 + 4 * 4
RECURRENT = {
    "SimpleRNN": (lambda: L.SimpleRNN(4), 5 * STEP),
    "LSTM": (lambda: L.LSTM(4, return_sequences=True), 5 * 4 * STEP),
    "GRU": (lambda: L.GRU(4), 5 * 3 * STEP),
    "GRU, reset before": (lambda: L.GRU(4, reset_after=False, go_backwards=True), 5 * 3 * STEP),
    "Bidirectional": (lambda: L.Bidirectional(L.LSTM(4)), 2 * 5 * 4 * STEP),
    # the second cell reads the 4 outputs of the first one and has a state of 2
    "stacked cells": (lambda: L.RNN([L.LSTMCell(4), L.GRUCell(2)]), 5 * (4 * STEP + 3 * (4 * 2 + 2 * 2))),
    "wrapped in steps": (lambda: L.TimeDistributed(L.Dense(7)), 5 * 3 * 7),
}
# Videos of 5 images of 6x6 with 3 channels. With strides of 2 the state has 3x3 positions, and both kernels, of 3x3 to four
# gates of 4 filters, work at each of them.
VIDEO = {
    "ConvLSTM2D": (lambda: L.ConvLSTM2D(4, 3, strides=2, padding="same"), 5 * 9 * (9 * 3 * 16 + 9 * 4 * 16)),
    "ConvLSTM2D, sequences": (lambda: L.ConvLSTM2D(4, 3, return_sequences=True), 5 * 16 * (9 * 3 * 16 + 9 * 4 * 16)),
    "convolution": (lambda: L.TimeDistributed(L.Conv2D(4, 3)), 5 * 16 * 9 * 3 * 4),
    "model of any size": (lambda: L.TimeDistributed(any_size()), 5 * ANY_SIZE_ON_6X6),
}


@pytest.mark.parametrize("name", [*RECURRENT, *VIDEO])
def test_layers_over_steps_cost_what_each_step_costs(name):
    make, expected = {**RECURRENT, **VIDEO}[name]
    cost = cost_of(make(), (5, 3) if name in RECURRENT else (5, 6, 6, 3))
    assert cost.macs == expected
    assert not cost.uncounted


def test_recurrent_layers_of_one_and_three_dimensions():
    # 5 steps, 4 positions, kernels of 3 to 4 gates of 4 filters; 2 steps, 2x2x2 positions, kernels of 2x2x2, 2 filters
    assert cost_of(L.ConvLSTM1D(4, 3, return_sequences=True), (5, 6, 3)).macs == 5 * 4 * (3 * 3 * 16 + 3 * 4 * 16)
    assert cost_of(L.ConvLSTM3D(2, 2), (2, 3, 3, 3, 1)).macs == 2 * 8 * (8 * 1 * 8 + 8 * 2 * 8)


def test_a_layer_that_keeps_its_state_costs_the_same():
    i = keras.Input(batch_shape=(2, 5, 3))
    cost = keras_pcp.count_cost(keras.Model(i, L.LSTM(4, stateful=True)(i)))
    assert cost.macs == 5 * 4 * STEP


def test_a_cell_called_once_costs_one_step():
    cost = cost_of(L.LSTMCell(4), (3,), (4,), (4,), call=lambda cell, x, h, c: cell(x, [h, c])[0])
    assert cost.macs == 4 * STEP


def test_wrapped_and_reversed_layers_cost_what_they_compute():
    assert cost_of(L.SpectralNormalization(L.Conv2D(4, 3)), (6, 6, 3)).macs == 16 * 27 * 4
    if hasattr(L, "ReversibleEmbedding"):
        layer = L.ReversibleEmbedding(10, 4)
        assert cost_of(layer, (5, 4), call=lambda layer, x: layer(x, reverse=True)).macs == 5 * 4 * 10
        assert cost_of(L.ReversibleEmbedding(10, 4), (5,)).macs == 0


def test_attention_that_no_rule_follows_is_counted():
    # 4 rows of 5 positions with 8 features, 2 heads of 3; attention within the rows: 5 * 5 pairs in each of the 4
    rows = cost_of(L.MultiHeadAttention(2, 3, attention_axes=(2,)), (4, 5, 8), call=lambda layer, x: layer(x, x))
    assert rows.macs == 20 * 3 * 8 * 6 + 20 * 6 * 8 + 4 * 25 * 2 * 6
    # 5 queries and 7 values: scores too are an output, which changes no cost
    scored = cost_of(
        L.MultiHeadAttention(2, 3),
        (5, 8),
        (7, 8),
        call=lambda layer, q, v: layer(q, v, return_attention_scores=True),
    )
    assert scored.macs == 5 * 8 * 6 + 2 * 7 * 8 * 6 + 5 * 6 * 8 + 2 * 35 * 6


@pytest.mark.skipif(not hasattr(L, "GroupQueryAttention"), reason="it came with a later Keras")
def test_grouped_attention_has_a_rule(tmp_path):
    cost = cost_of(L.GroupQueryAttention(3, 4, 2), (5, 8), (7, 8), call=lambda layer, q, v: layer(q, v))
    # 4 heads of 3 for the 5 queries, 2 for keys and values of 7 positions, which serve all 4 heads
    assert cost.macs == 5 * 8 * 12 + 2 * 7 * 8 * 6 + 5 * 12 * 8 + 2 * 35 * 12
    i = keras.Input((5, 3))
    x, y = L.Dense(8, name="query")(i), L.Dense(8, name="value")(i)
    model = keras.Model(i, L.Dense(4)(L.GroupQueryAttention(3, 4, 2, name="attention")(x, y)))
    graph = keras_pcp.build_graph(model)
    assert [(g.num_channels, g.producers) for g in graph] == [(8, ("query", "value", "attention"))]
    selection = keras_pcp.Selection({"query": np.arange(8) % 3 > 0})
    data = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    with keras_pcp.masked(model, graph, selection):
        expected = np.asarray(model(data))
    small = keras_pcp.prune_model(model, graph, selection)
    np.testing.assert_allclose(np.asarray(small(data)), expected, rtol=1e-5, atol=1e-5)
    assert keras_pcp.count_cost(small).macs == keras_pcp.count_cost(graph, selection).macs
    small.save(tmp_path / "small.keras")
    np.testing.assert_allclose(
        np.asarray(keras.models.load_model(tmp_path / "small.keras")(data)), np.asarray(small(data))
    )
    keras_pcp.shrink(model, graph, selection)
    np.testing.assert_allclose(np.asarray(model(data)), expected, rtol=1e-5, atol=1e-5)


# Layers that have no rule and are not counted: they own no kernels (or hold code of another framework).
NO_KERNELS = set(
    "AdditiveAttention Attention AugMix AutoContrast CategoryEncoding ContrastLimitedAdaptiveHistogramEqualization CutMix "
    "Discretization Equalization HashedCrossing Hashing InputLayer IntegerLookup Lambda Layer Masking MaxNumBoundingBoxes "
    "MelSpectrogram MixUp Pipeline RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast "
    "RandomElasticTransform RandomErasing RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective "
    "RandomPosterization RandomSaturation RandomSharpness RandomShear Solarization StringLookup TextVectorization".split()
)
UNKNOWN = {"FlaxLayer", "JaxLayer", "STFTSpectrogram", "TFSMLayer", "TorchModuleWrapper", "Wrapper"}


def test_every_layer_of_keras_has_a_rule_or_a_count_or_an_unknown_cost():
    classes = {n: c for n, c in vars(L).items() if isinstance(c, type) and issubclass(c, keras.Layer)}
    rest = {n for n, c in classes.items() if c not in _LAYER_RULES and c not in _COUNTS}
    assert rest <= NO_KERNELS | UNKNOWN, "give it a rule or a count, or list it here"


def with_recurrence():
    i = keras.Input((5, 3))
    x = L.LSTM(16, name="memory")(L.Dense(8, name="before")(i))
    return keras.Model(i, L.Dense(2, name="logits")(L.Dense(6, name="after")(x)))


def test_a_limit_counts_recurrent_layers_although_they_keep_their_channels():
    graph = keras_pcp.build_graph(with_recurrence(), on_unknown="freeze")
    # 5 * 3*8 (before), 5 * 4 * (8*16 + 16*16) (memory), 16*6 (after), 6*2 (logits)
    full = 120 + 7680 + 96 + 12
    assert keras_pcp.count_cost(graph).macs == full
    assert list(graph.groups) == ["after"]
    scores = keras_pcp.score_channels(with_recurrence(), graph, "l1")
    with pytest.raises(LimitError, match=r"macs cannot get below 7,818 \(0.989"):  # one channel in after
        keras_pcp.select_by_cost(graph, scores, max_macs=0.5)


class Mixing(L.Layer):
    """A kernel whose cost nobody knows."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel)


def with_unknown_cost():
    i = keras.Input((4, 4, 3))
    x = L.Conv2D(8, 3, name="free")(Mixing(name="mixing")(i))
    model = keras.Model(i, L.Dense(2, name="logits")(L.GlobalAveragePooling2D()(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


IMAGES, LABELS = np.random.default_rng(0).normal(size=(32, 4, 4, 3)), np.arange(32) % 2


def test_an_unknown_cost_is_not_zero_and_max_macs_is_refused_before_training():
    model = with_unknown_cost()
    cost = keras_pcp.count_cost(model)
    assert np.isnan(cost.macs)
    assert cost.layers["free"].macs == 4 * 9 * 4 * 8
    assert list(cost.uncounted) == ["mixing"]
    assert "MACs of layer mixing unknown: 'mixing' (Mixing) has no rule" in str(cost)
    before = model.get_weights()
    pruning = keras_pcp.ProgressivePruning(
        max_macs=0.5, validation_data=(IMAGES, LABELS), on_unknown="freeze", begin=0.0
    )
    with pytest.raises(LimitError, match=r"mixing: 'mixing' \(Mixing\) has no rule.*register_rule.*max_params"):
        model.fit(IMAGES, LABELS, epochs=2, verbose=0, callbacks=[pruning])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_other_limits_hold_although_a_cost_is_unknown_and_the_run_says_so(capsys):
    model = with_unknown_cost()
    pruning = keras_pcp.ProgressivePruning(
        max_params=0.6, validation_data=(IMAGES, LABELS), on_unknown="freeze", begin=0.0
    )
    model.fit(IMAGES, LABELS, batch_size=8, epochs=2, verbose=2, callbacks=[pruning])
    assert pruning.report.reached
    assert "\nMACs of layer mixing unknown" in capsys.readouterr().out
    assert "note: MACs of layer mixing unknown" in str(pruning.report)
    assert "nan" not in str(pruning.report)
    data = pruning.report.to_json()
    assert data["before"]["macs"] is None
    assert len(data["notes"]) == 1


def test_a_nested_model_of_any_size_is_counted_in_each_call_with_the_size_of_that_call():
    inner = any_size()
    a, b = keras.Input((6, 6, 3)), keras.Input((4, 2, 3))
    model = keras.Model([a, b], L.Add()([inner(a), inner(b)]))
    graph = keras_pcp.build_graph(model)
    cost = keras_pcp.count_cost(graph)
    # 3x3 and 2x1 positions of 3*3*3 * 4, and 4*2 twice
    assert cost.layers["inner"].macs == (9 + 2) * 108
    assert cost.macs == (9 + 2) * 108 + 2 * 8
    assert [(g.name, g.num_channels) for g in graph] == [("inner", 4)]
    half = keras_pcp.Selection({"inner": np.arange(4) < 2})
    small = keras_pcp.prune_model(model, graph, half)
    assert keras_pcp.count_cost(small).macs == keras_pcp.count_cost(graph, half).macs == (9 + 2) * 54 + 2 * 4


def test_a_layer_that_knows_less_of_its_output_than_it_computes_leaves_no_cost_unknown():
    i = keras.Input((5, 3))
    x = L.EinsumDense("abc,cd->abd", output_shape=(None, 4))(i)
    assert x.shape[1] is None
    assert keras_pcp.count_cost(keras.Model(i, L.Dense(2)(x))).macs == 5 * 3 * 4 + 5 * 4 * 2


def test_where_a_size_stays_unknown_the_message_names_the_input():
    i, j = keras.Input((None, None, 3), name="picture"), keras.Input((4,), name="numbers")
    model = keras.Model([i, j], L.Add()([any_size()(i), L.Dense(2)(j)]))
    graph = keras_pcp.build_graph(model)
    with pytest.raises(
        LimitError, match=r"inner: the size of the model's input 'picture' of shape \(None, None, None, 3"
    ):
        keras_pcp.select_by_cost(graph, keras_pcp.score_channels(model, graph), max_macs=0.5)


class Taught(keras.Model):
    """A functional model that holds another one, which takes no part in its outputs."""


def taught():
    i = keras.Input((4,))
    model = Taught(i, L.Dense(2, name="logits")(L.Dense(8, name="hidden")(i)))
    model.teacher = keras.Sequential([keras.Input((4,)), L.Dense(100, name="wide"), L.Dense(2, name="last")])
    return model


def test_weights_that_no_call_uses_count_because_the_model_has_them_and_this_is_said():
    model = taught()
    if len(model.weights) == 4:
        pytest.skip("this version of Keras lists the weights of calls only")
    graph = keras_pcp.build_graph(model)
    cost = keras_pcp.count_cost(graph)
    # 4*8 + 8 and 8*2 + 2; 4*100 + 100 and 100*2 + 2 in the teacher
    assert cost.params == model.count_params() == 58 + 702
    assert cost.macs == 4 * 8 + 8 * 2
    assert "no call of the model uses 702 of 760 parameters" in str(cost)
    assert "no call of the model uses 702 of 760 parameters" in str(graph)
    scores = keras_pcp.score_channels(model, graph)
    with pytest.raises(
        LimitError, match=r"cannot get below 711 .*no call of the model uses 702 of 760 parameters.*deliver"
    ):
        keras_pcp.select_by_cost(graph, scores, max_params=0.5)


@pytest.mark.parametrize("part", [lambda model: keras.Model(model.inputs, model.outputs), lambda model: model])
def test_with_deliver_weights_that_no_call_uses_do_not_count(part):
    model = taught()
    graph = delivered_graph(model, part(model), "error", ())
    cost = keras_pcp.count_cost(graph)
    assert (cost.params, cost.macs) == (58, 4 * 8 + 8 * 2)
    assert "used by no call" not in str(cost)
    selection = keras_pcp.select_by_cost(graph, keras_pcp.score_channels(model, graph), max_params=0.5)
    assert keras_pcp.count_cost(graph, selection).params <= 29


class Scaled(L.Layer):
    """One factor per channel."""

    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], name="factor")

    def call(self, x):
        return x * self.factor


def follows(site):
    site.follow(site.operation.factor, 0, site.channels(site.inputs[0]), "scale")
    return site.inputs[0]


def between(layer):
    i = keras.Input((6, 6, 3))
    x = layer(L.Conv2D(4, 1, name="conv")(i))
    return keras.Model(i, L.Conv2D(2, 1, name="head")(x))


def test_a_rule_that_forgets_a_weight_is_an_error_that_says_how_to_account_for_it():
    keras_pcp.register_rule(Scaled, replace=True)(lambda site: site.inputs[0])
    message = r"rule of 'scaled' \(Scaled\).*'scaled/factor' of shape \(4,\).*site.follow.*site.independent"
    with pytest.raises(UnsupportedModelError, match=message):
        keras_pcp.build_graph(between(Scaled(name="scaled")))
    # where nothing can be removed, nothing is lost
    assert len(keras_pcp.build_graph(between(Scaled()), frozen_layers=["conv"])) == 0
    keras_pcp.register_rule(Scaled, replace=True)(follows)
    assert list(keras_pcp.build_graph(between(Scaled())).groups) == ["conv"]


def test_a_second_rule_for_a_class_is_an_error_unless_it_is_to_replace_the_first():
    class Doubled(L.Layer):
        def call(self, x):
            return 2 * x

    @keras_pcp.register_rule(Doubled)
    def doubled(site):
        return site.inputs[0]

    with pytest.raises(InvalidArgumentError, match=r"Doubled has a rule already, .*doubled of .*replace=True"):
        keras_pcp.register_rule(Doubled)(lambda site: None)
    keras_pcp.register_rule(Doubled, replace=True)(lambda site: None)
    with pytest.raises(InvalidArgumentError, match="Dense has a rule already"):
        keras_pcp.register_rule(L.Dense)(doubled)


def test_a_weight_may_be_declared_independent_of_channels():
    class Rows(L.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[1], 1, 1), name="factor")
            self.one = self.add_weight(shape=(1,), name="one")

        def call(self, x):
            return x * self.factor + self.one

    @keras_pcp.register_rule(Rows)
    def rows(site):
        site.independent(site.operation.factor)
        site.macs(site.operation.factor, 0)
        return site.inputs[0]

    check_rule(Rows(), (5, 5, 4))


def test_a_rule_that_counts_nothing_of_a_kernel_leaves_the_cost_unknown():
    class Projected(Mixing):
        def call(self, x):
            return ops.matmul(x, self.kernel)

    def projected(site):
        site.consume(site.operation.kernel, 0, site.channels(site.inputs[0]))
        site.freeze(out := site.produce((site.operation.kernel, 1, "kernel")), "keeps them")
        return out

    keras_pcp.register_rule(Projected)(projected)
    cost = keras_pcp.count_cost(between(Projected(name="projected")))
    assert np.isnan(cost.macs)
    assert (
        "its rule does not say how often it uses projected/kernel (4, 4); call site.macs" in cost.uncounted["projected"]
    )
    with pytest.raises(AssertionError, match=r"the cost of 'again' is unknown: .*site.macs"):
        check_rule(Projected(name="again"), (5, 5, 4))


def test_a_rule_that_fails_is_an_error_that_names_the_layer():
    keras_pcp.register_rule(Scaled, replace=True)(lambda site: site.inputs[0].ids)
    i = keras.Input((4,))
    model = keras.Model(i, L.Dense(2)(Scaled(name="scaled")(i)))
    with pytest.raises(
        UnsupportedModelError, match=r"rule of 'scaled' \(Scaled\) fails with AttributeError.*holds None"
    ):
        keras_pcp.build_graph(model)


def test_a_wrapped_layer_of_unknown_cost_has_an_unknown_cost():
    class Shaped(Mixing):
        def compute_output_shape(self, shape):
            return *shape[:-1], 4

    assert list(cost_of(L.TimeDistributed(Shaped(), name="wrapped"), (5, 3)).uncounted) == ["wrapped"]
    keras_pcp.register_rule(Scaled, replace=True)(lambda site: site.inputs[0].ids)
    shaped = type("Shaped", (Scaled,), {"compute_output_shape": lambda self, shape: shape})
    assert cost_of(L.TimeDistributed(shaped()), (5, 3)).macs == 0  # one axis only, no kernel


class Flipped(Scaled):
    """Factors that are applied the other way round."""

    def call(self, x):
        return x * self.factor[::-1]


class Told(Scaled):
    """A layer whose config has the width."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.factor = self.add_weight(shape=(self.width,), name="factor")

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_check_rule_passes_right_rules():
    keras_pcp.register_rule(Scaled, replace=True)(follows)
    check_rule(Scaled, (3, 3, 4))
    check_rule(L.Conv2D(5, 2, activation="relu"), (3, 3, 4))
    check_rule(L.LayerNormalization, (6,))  # statistics over channels
    check_rule(L.Add, [(3, 4), (3, 4)])
    keras_pcp.register_rule(Told, replace=True)(
        lambda site: (site.width("width", site.channels(site.inputs[0])), follows(site))[1]
    )
    check_rule(Told(4), (3, 4))


def test_check_rule_says_what_is_wrong():
    keras_pcp.register_rule(Scaled, replace=True)(lambda site: site.inputs[0])
    with pytest.raises(AssertionError, match="says nothing of the layer's weight"):
        check_rule(Scaled, (3, 4))
    keras_pcp.register_rule(Flipped, replace=True)(follows)
    with pytest.raises(AssertionError, match="computes different outputs than with these channels set to 0"):
        check_rule(Flipped, (3, 4))
    keras_pcp.register_rule(Told, replace=True)(follows)
    with pytest.raises(AssertionError, match=r"site\.width"):
        check_rule(Told(4), (3, 4))
    with pytest.raises(AssertionError, match="has no rule"):
        check_rule(Mixing, (3, 4))

"""The report on what can be pruned: its figures are worked out by hand, its lines are short, its JSON is complete."""

import json
import re
from pathlib import Path

import keras
import pytest
from keras import layers as L
from zoo import Odd, build

import keras_pcp
from keras_pcp.graph.channel_graph import inspect_graph
from keras_pcp.graph.widths import smallest

README = Path(__file__).parents[2] / "README.md"


def inspected(model, **options):
    return inspect_graph(keras_pcp.build_graph(model, **options))


def small_model(shape=(4, 4, 3), prefix=""):
    i = keras.Input(shape)
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name=f"{prefix}first")(i)
    x = L.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = L.Conv2D(6, 1, use_bias=False, name=f"{prefix}second")(x)
    return keras.Model(i, L.Dense(5, name=f"{prefix}logits")(L.GlobalAveragePooling2D()(x)))


WHY = "Odd has no rule, and cannot be opened: it owns weights that belong to no layer that it calls"


def with_unknown_layers(count):
    """Convolutions with a layer after each that has no rule."""
    x = i = keras.Input((4, 4, 3))
    for k in range(count):
        x = Odd(name=f"odd_{k}")(L.Conv2D(4, 1, name=f"before_{k}")(x))
    return keras.Model(i, L.Conv2D(2, 1, name="out")(L.Conv2D(3, 1, name="free")(x)))


def widest(text):
    return max(len(line) for line in text.splitlines())


def test_totals_are_those_worked_out_by_hand():
    found = inspected(small_model())
    # 4*4 positions: 3*3*3*8 (first), 3*3*8 (depthwise), 8*6 (second); 6*5 and 5 biases (logits)
    assert found.full.macs == 16 * (216 + 72 + 48) + 30 == 5406
    assert found.full.params == 216 + 72 + 48 + 30 + 5
    # one channel each: 3*3*3*1, 3*3*1, 1*1; 1*5 and 5 biases
    assert found.least.macs == 16 * (27 + 9 + 1) + 5 == 597
    assert found.least.params == 27 + 9 + 1 + 5 + 5
    assert (found.prunable_channels, found.total_channels) == (8 + 6, 8 + 6 + 5)


def test_a_group_has_the_macs_and_weights_that_its_channels_take_part_in():
    first, second = inspected(small_model()).groups
    assert (first.name, first.num_channels, first.macs, first.params) == ("first", 8, 16 * (216 + 72 + 48), 336)
    assert (second.name, second.num_channels, second.macs, second.params) == ("second", 6, 16 * 48 + 30, 48 + 30)


def test_of_an_operation_on_a_concatenation_each_group_has_its_own_part():
    i = keras.Input((4, 4, 2))
    x = L.Concatenate()([L.Conv2D(3, 1, name="a")(i), L.Conv2D(5, 1, name="b")(i)])
    macs = {g.name: g.macs for g in inspected(keras.Model(i, L.Conv2D(4, 1)(x))).groups}
    assert macs == {"a": 16 * (2 * 3 + 3 * 4), "b": 16 * (2 * 5 + 5 * 4)}


def test_an_operation_inside_a_group_counts_once():
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(3, 1, name="a")(i)
    x = L.Add()([x, L.Conv2D(3, 1, name="b")(x)])
    (group,) = inspected(keras.Model(i, L.Conv2D(4, 1)(x))).groups
    assert group.macs == 16 * (2 * 3 + 3 * 3 + 3 * 4)
    assert group.producers == ("a", "b")


@pytest.mark.parametrize(
    "name", ["residual", "concat_added", "slicing", "shared_layers", "grouped", "attention", "transposed"]
)
def test_the_least_reachable_cost_is_that_of_the_model_pruned_so_far(name):
    model = build(name)
    graph = keras_pcp.build_graph(model)
    found, real = inspect_graph(graph), keras_pcp.count_cost(keras_pcp.prune_model(model, graph, smallest(graph)))
    assert (found.least.macs, found.least.params, found.least.bytes) == (real.macs, real.params, real.bytes)
    assert found.least.params < found.full.params


def test_a_layer_that_two_concatenated_layers_are_added_to_has_a_group_with_each():
    i = keras.Input((4, 4, 2))
    joined = L.Concatenate()([L.Conv2D(4, 1, name="a")(i), L.Conv2D(6, 1, name="b")(i)])
    x = L.Add()([joined, L.Conv2D(10, 1, name="whole")(i)])
    found = inspected(keras.Model(i, L.Conv2D(3, 1)(x)))
    assert [(g.name, g.num_channels, g.producers) for g in found.groups] == [
        ("a", 4, ("a", "whole")),
        ("b", 6, ("b", "whole")),
    ]
    assert found.least.macs == 16 * (2 * 1 + 2 * 1 + 2 * 2 + 2 * 3)
    assert found.prunable_channels == 4 + 6 + 10


def test_mobilenet_fits_into_80_columns_lists_every_group_and_is_what_the_readme_shows():
    graph = keras_pcp.build_graph(keras.applications.MobileNetV2(weights=None))
    text = str(graph)
    assert widest(text) <= 80
    assert text.startswith("mobilenetv2_1.00_224: 25 channel groups\n")
    # torchvision and the paper's table 4 (arXiv 1801.04381) give 300 M and 3.5 M (3.4 M) for this network
    assert "MACs        300.8 M, least reachable" in text
    assert "parameters  3.5 M, least reachable" in text
    assert all(f"\n{group.name} " in text for group in graph)
    shown = re.search(r"```text\n(mobilenetv2.*?)\n```", README.read_text(), re.S)[1]
    assert [line for line in shown.splitlines() if line != "..." and line not in text.splitlines()] == []


def test_long_names_are_shortened_and_stay_apart():
    prefix = "backbone_" * 12
    i = keras.Input((4, 4, 3))
    x = i
    for k in range(4):
        x = L.Conv2D(4, 1, name=f"{prefix}stage_{k}_{'convolution_' * 8}end")(x)
    text = str(keras_pcp.build_graph(keras.Model(i, L.Conv2D(2, 1, name=prefix + "out")(x), name=prefix * 3)))
    assert widest(text) <= 80
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("..")]
    assert len(set(rows)) == len(rows) == 4


def test_one_reason_is_printed_once_with_at_most_five_layers():
    found = inspected(with_unknown_layers(7), on_unknown="freeze")
    reason = f"{WHY}, so what it does with them is unknown"
    remark = next(r for r in found.frozen if r.text == reason)
    assert remark.num_channels == 7 * 4
    assert remark.layers == tuple(f"before_{k}" for k in range(7))
    assert remark.causes == tuple(f"odd_{k}" for k in range(7))
    text = str(found)
    assert text.count("28 channels of 7 layers: Odd has no rule") == 1
    assert "    before_0, before_1, before_2, before_3, before_4, ... (7 in all)" in text
    assert "    because of odd_0, odd_1, odd_2, odd_3, odd_4, ... (7 in all)" in text
    assert "before_5" not in text
    assert widest(text) <= 80


def test_notes_about_unknown_layers_are_put_together():
    found = inspected(with_unknown_layers(6), on_unknown="freeze")
    (note,) = found.notes
    assert (note.text, len(note.layers)) == (f"{WHY}; its channels are frozen", 6)
    assert "notes\n  6 layers: Odd has no rule, and cannot be opened" in str(found)


def test_layers_whose_macs_are_not_counted_are_named():
    class Mixing(L.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 4))

        def call(self, x):
            return keras.ops.matmul(x, self.kernel)

    i = keras.Input((4, 4, 3))
    found = inspected(keras.Model(i, L.Conv2D(2, 1)(Mixing(name="mixing")(i))), on_unknown="freeze")
    text = " ".join(str(found).split())
    assert "MACs unknown, since those of 1 of 2 layers are" in text
    assert "1 layer with unknown MACs: Mixing has no rule, and cannot be opened: it owns weights" in text
    [remark] = found.to_json()["uncounted"]
    assert (remark["layers"], remark["causes"]) == (["mixing"], [])
    assert found.to_json()["full"]["macs"] is None


def test_weights_that_no_call_uses_are_shown():
    class Holding(keras.Model):
        pass

    i = keras.Input((4,))
    model = Holding(i, L.Dense(2)(L.Dense(3)(i)))
    model.teacher = keras.Sequential([i, L.Dense(10)])
    if len(model.weights) == 4:
        pytest.skip("this version of Keras lists the weights of calls only")
    found = inspected(model)
    assert found.to_json()["idle"] == 4 * 10 + 10
    assert "no call of the model uses 50 of 73 parameters" in " ".join(str(found).split())


def test_frozen_and_prunable_filters_add_up_to_all_filters():
    found = inspected(build("grouped"))
    assert found.total_channels - found.prunable_channels == sum(r.num_channels for r in found.frozen)


def test_a_layer_that_takes_statistics_over_channels_is_marked():
    text = str(keras_pcp.build_graph(build("layer_norm")))
    assert "exact no:" in text
    assert any(line.endswith("  no") for line in text.splitlines())
    assert "exact no:" not in str(keras_pcp.build_graph(small_model()))


def test_macs_are_unknown_where_the_input_size_is_and_parameters_are_shown_all_the_same():
    found = inspected(small_model((None, None, 3)))
    assert "MACs        unknown, since those of 3 of 4 layers are\n  parameters  371, least" in str(found)
    assert "3 layers with unknown MACs: the size of the model's input" in " ".join(str(found).split())
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["full"]["macs"] is data["least"]["macs"] is data["groups"][0]["macs"] is None
    assert data["groups"][0]["params"] == 336


def test_a_model_without_groups_is_said_to_have_none():
    i = keras.Input((4,))
    text = str(keras_pcp.build_graph(keras.Model(i, L.Dense(2, name="out")(i), name="bare")))
    assert text.startswith("bare: 0 channel groups\n  prunable    0 of 2 channels (0.0%)\n")
    assert "exact" not in text


def test_json_keeps_every_figure():
    model = build("residual")
    graph = keras_pcp.build_graph(model)
    data = json.loads(json.dumps(inspect_graph(graph).to_json()))
    full, least = keras_pcp.count_cost(model), keras_pcp.count_cost(graph, smallest(graph))
    assert list(data) == [
        "model",
        "full",
        "least",
        "channels",
        "groups",
        "frozen",
        "notes",
        "uncounted",
        "idle",
        "blocks",
    ]
    assert data["full"] == {"macs": full.macs, "params": full.params, "bytes": full.bytes}
    assert data["least"] == {"macs": least.macs, "params": least.params, "bytes": least.bytes}
    assert [(g["name"], g["num_channels"], tuple(g["producers"])) for g in data["groups"]] == [
        (g.name, g.num_channels, g.producers) for g in graph
    ]
    assert set(data["groups"][0]) == {"name", "num_channels", "least_channels", "producers", "macs", "params", "exact"}
    assert data["frozen"][0]["text"] == "output of the model"
    assert set(data["frozen"][0]) == {"text", "layers", "causes", "num_channels"}

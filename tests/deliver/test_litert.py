"""Files are verified before they are written; their figures are right."""

import os

import fuzz_export
import keras
import numpy as np
import pytest
import random_graphs
from keras import layers as L
from zoo import build, inputs_for

import keras_pcp
from keras_pcp.errors import ExportError, InvalidArgumentError


@pytest.mark.parametrize(("quantization", "limit"), [("float16", 1e-2), ("dynamic", 0.1), ("int8", 0.2)])
def test_quantized_files_stay_near_the_model_and_are_smaller(quantization, limit, tmp_path):
    model = build("residual")
    x = inputs_for(model, 64)
    full = keras_pcp.export_litert(model, tmp_path / "full.tflite")
    small = keras_pcp.export_litert(model, tmp_path / "small.tflite", quantization=quantization, representative_data=x)
    assert small.bytes < full.bytes
    assert 0 < small.mean_error <= small.max_error < limit
    assert full.max_error < 1e-4
    os.umask(umask := os.umask(0o022))
    assert full.path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_mismatch_is_an_error_and_leaves_no_file(tmp_path):
    model = build("residual")
    x = inputs_for(model, 16)
    with pytest.raises(ExportError, match="differs from Keras by"):
        keras_pcp.export_litert(
            model, tmp_path / "m.tflite", quantization="int8", representative_data=x, tolerance=1e-9
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_caught(tmp_path, monkeypatch):
    model, other = build("residual"), build("residual", seed=1)
    convert = keras_pcp.deliver.litert._convert
    monkeypatch.setattr(keras_pcp.deliver.litert, "_convert", lambda m, q, x: convert(other, q, x))
    with pytest.raises(ExportError, match="differs"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_what_litert_cannot_run_is_an_error_that_names_it(tmp_path):
    i = keras.Input((6, 6, 6, 2))
    model = keras.Model(i, keras.layers.AveragePooling3D(2)(i))
    with pytest.raises(ExportError, match="AvgPool3D"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int4"}, "int4"),
        ({"quantization": "int8"}, "representative_data"),
        ({"representative_data": np.zeros((3, 8, 8))}, "shapes"),
        ({"representative_data": np.zeros((0, 8, 8, 3))}, "at least one sample"),
        ({"representative_data": np.zeros((2, 9, 8, 3))}, "shapes"),
        ({"representative_data": 3}, "shapes"),
        ({"representative_data": [[1], [2, 3]]}, "shapes"),
        ({"representative_data": np.zeros((2, 8, 8, 3)).astype(str)}, "must hold numbers"),
        ({"quantization": ["int8"]}, "int8"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_bad_arguments_are_refused(options, message, tmp_path):
    with pytest.raises(InvalidArgumentError, match=message):
        keras_pcp.export_litert(build("residual"), tmp_path / "m.tflite", **options)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        keras_pcp.export_litert(build("residual"), tmp_path / "nowhere" / "m.tflite")


def test_unknown_sizes_need_samples(tmp_path):
    i = keras.Input((None, None, 3))
    model = keras.Model(i, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(i)))
    with pytest.raises(InvalidArgumentError, match="unknown sizes"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite")
    file = keras_pcp.export_litert(model, tmp_path / "m.tflite", representative_data=np.ones((2, 9, 9, 3)))
    assert file.path.exists()


def test_latency_is_a_positive_time(tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(InvalidArgumentError, match="there is no file"):
        keras_pcp.measure_latency(path)
    (tmp_path / "linked.tflite").write_bytes(b"old")
    path.symlink_to("linked.tflite")
    keras_pcp.export_litert(build("residual"), path)
    assert path.is_symlink()
    assert 0 < keras_pcp.measure_latency(path, runs=10) < 1000
    with pytest.raises(InvalidArgumentError, match="runs must be an int of at least 1, got 0"):
        keras_pcp.measure_latency(path, runs=0)
    path.write_bytes(b"no model")
    with pytest.raises(InvalidArgumentError, match="LiteRT cannot run"):
        keras_pcp.measure_latency(path)


def network(activation="relu"):
    """A convolution, a second one and a classifier, with weights that the tests spoil, and samples for it."""
    keras.utils.set_random_seed(0)
    i = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, activation=activation, name="first")(i)
    model = keras.Model(i, L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(L.Conv2D(4, 3, name="second")(x))))
    return model, np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype("float32")


def spoiled(model, name, value):
    kernel, bias = model.get_layer(name).get_weights()
    kernel.flat[0] = value
    model.get_layer(name).set_weights([kernel, bias])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e39])
def test_int8_refuses_samples_that_are_not_finite(value, tmp_path):
    model, x = network()
    x = x.astype("float64")
    x[5, 0, 0, 0] = value
    with pytest.raises(InvalidArgumentError, match=r"NaN, infinite or too large values in sample\(s\) 5"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite", quantization="int8", representative_data=x)


@pytest.mark.parametrize(
    ("layer", "weight", "scale", "message"),
    [
        ("first", np.inf, 1, "weight first/kernel"),
        ("second", np.nan, 1, "weight second/kernel"),
        ("first", 1e38, 100, "layer 'first' computes"),
        ("second", 1e38, 100, "layer 'second' computes"),
    ],
)
def test_int8_refuses_what_is_not_finite_inside_and_names_the_layer(layer, weight, scale, message, tmp_path):
    model, x = network()
    spoiled(model, layer, weight)
    with pytest.raises(ExportError, match=message):
        keras_pcp.export_litert(model, tmp_path / "m.tflite", quantization="int8", representative_data=scale * x)
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_crashes_is_an_error_and_the_next_export_works(tmp_path):
    model, x = network("softplus")  # finite, but LiteRT's own way to compute it overflows
    spoiled(model, "first", 1e30)
    spoiled(model, "second", 0)
    with pytest.raises(ExportError, match=r"LiteRT cannot .*No file was written"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite", quantization="int8", representative_data=1e3 * abs(x))
    model, x = network()
    assert keras_pcp.export_litert(model, tmp_path / "m.tflite", quantization="int8", representative_data=x).bytes > 0


def test_a_dead_layer_is_an_error_that_names_it(tmp_path):
    model, x = network()
    kernel, bias = model.get_layer("first").get_weights()
    model.get_layer("first").set_weights([kernel, bias - 100])
    with pytest.raises(ExportError, match=r"LiteRT cannot run .* layer\(s\) 'first', .* have no int8 range"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite", quantization="int8", representative_data=x)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_keras_itself_cannot_compute_are_said_to_be_so(tmp_path):
    model, x = network()
    spoiled(model, "first", np.inf)
    with pytest.raises(ExportError, match="itself computes NaN or infinite outputs"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite", representative_data=x)
    tokens = keras.Input((4,), dtype="int32")
    model = keras.Model(tokens, L.Embedding(5, 2)(tokens))
    with pytest.raises(InvalidArgumentError, match=r"fails on representative_data"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite", representative_data=np.full((2, 4), 7))
    with pytest.raises(InvalidArgumentError, match="int32 cannot hold"):
        keras_pcp.export_litert(model, tmp_path / "m.tflite", representative_data=np.full((2, 4), np.inf))


def test_samples_in_a_dict_go_by_the_names_of_the_inputs():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([b, a], L.Subtract()([a, b]))
    data = {"a": np.zeros((1, 2)), "b": np.ones((1, 2)), "id": np.zeros(1)}
    assert [x.tolist() for x in keras_pcp.deliver.litert._samples(model, data)] == [[[1, 1]], [[0, 0]]]
    with pytest.raises(InvalidArgumentError, match=r"has the entries \['a', 'x'\], the model takes \['b', 'a'\]"):
        keras_pcp.deliver.litert._samples(model, {"a": data["a"], "x": data["b"]})


def test_a_file_that_kills_the_runtime_is_an_error_and_the_next_export_works(tmp_path, monkeypatch):
    monkeypatch.delitem(random_graphs.STEPS, "padded_residual")  # the network was found without it
    found = fuzz_export.check_seed(150, tmp_path)  # XNNPACK aborts on this one
    assert found.startswith("ExportError: LiteRT cannot run its own file of")
    assert keras_pcp.export_litert(build("plain_flatten"), tmp_path / "next.tflite").max_error < 1e-4

"""Files are verified before they are written; their figures are right."""

import keras
import numpy as np
import pytest
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
    convert = keras_pcp.export._convert
    monkeypatch.setattr(keras_pcp.export, "_convert", lambda m, q, x: convert(other, q, x))
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
    keras_pcp.export_litert(build("residual"), path)
    assert 0 < keras_pcp.measure_latency(path, runs=10) < 1000
    with pytest.raises(InvalidArgumentError, match="runs must be at least 1, got 0"):
        keras_pcp.measure_latency(path, runs=0)

"""The command `keras-pcp prune` with data: where samples come from, what it writes and says, and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import keras_pcp
from keras_pcp.cli import main
from keras_pcp.cli.data import read
from keras_pcp.cli.tuning import compile_classifier
from keras_pcp.errors import InvalidArgumentError


def images(count, seed=0, channels=3):
    """Bright and dark squares in noise, in [0, 1]: two classes that a small network learns at once."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = rng.uniform(0.3, 0.7, (count, 8, 8, channels)).astype("float32")
    x[:, 2:6, 2:6] += np.where(y, 0.3, -0.3)[:, None, None, None]
    return x, y


def classifier(activation=None, classes=2, rescaling=False, shape=(8, 8, 3)):
    i = keras.Input(shape)
    x = L.Rescaling(1 / 255)(i) if rescaling else i
    x = L.ReLU()(L.BatchNormalization(momentum=0.8)(L.Conv2D(8, 3, name="first")(x)))
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu", name="second")(x))
    return keras.Model(i, L.Dense(classes, activation=activation, name="head")(x), name="squares")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file with a trained classifier, and one with its data."""
    folder = tmp_path_factory.mktemp("squares")
    keras.utils.set_random_seed(0)
    model, (x, y) = classifier(), images(400)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=8, verbose=0)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] > 0.95
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=images(80, 1)[0], y_test=images(80, 1)[1])
    return folder


def figures(out):
    """The table as {name: (before, after)}."""
    found = re.findall(r"^(test accuracy|MACs|parameters) +([\d.,]+) +([\d.,]+)", out, re.M)
    return {name: tuple(float(v.replace(",", "")) for v in values) for name, *values in found}


def save_images(folder, x, y):
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        place = folder / ("bright" if label else "dark")
        place.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(place / f"{number}.png", 255 * image, scale=False)


def test_prune_with_data_trains_and_writes_a_verified_int8_file(trained, tmp_path, capsys):
    small, file = tmp_path / "small.keras", tmp_path / "small.tflite"
    command = [
        "prune",
        str(trained / "model.keras"),
        str(small),
        "--max-macs",
        "0.5",
        "--data",
        str(trained / "data.npz"),
    ]
    assert main([*command, "--tune-epochs", "2", "--tflite", str(file), "--quantization", "int8"]) == 0
    out = capsys.readouterr().out
    assert "360 training, 40 validation and 80 test samples" in out
    found, full = figures(out), keras.models.load_model(trained / "model.keras")
    model = keras.models.load_model(small)
    assert found["MACs"] == (keras_pcp.count_cost(full).macs, keras_pcp.count_cost(model).macs)
    assert found["MACs"][1] <= 0.5 * found["MACs"][0]
    x, y = images(80, 1)
    right = np.mean(model.predict(x, verbose=0).argmax(-1) == y)
    assert found["test accuracy"][1] == pytest.approx(right, abs=1e-4)
    assert right > 0.9
    said = re.search(r"([\d,]+) bytes, int8; accuracy of the file ([\d.]+) on 80 test samples", out)
    assert int(said[1].replace(",", "")) == file.stat().st_size
    assert float(said[2]) == pytest.approx(right, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["progressive", "one-shot"])
def test_without_epochs_the_widths_are_searched_and_the_copy_is_refit(method, trained, tmp_path, capsys):
    small = tmp_path / "small.keras"
    command = [
        "prune",
        str(trained / "model.keras"),
        str(small),
        "--max-params",
        "0.6",
        "--multiple-of",
        "2",
        "--quiet",
    ]
    assert main([*command, "--data", str(trained / "data.npz"), "--tune-epochs", "0", "--method", method]) == 0
    out = capsys.readouterr().out
    assert out.startswith(" " * 13)  # nothing but the table
    assert figures(out)["test accuracy"][1] > 0.9
    graph = keras_pcp.build_graph(keras.models.load_model(small))
    assert all(group.num_channels % 2 == 0 for group in graph)
    assert figures(out)["parameters"][1] <= 0.6 * figures(out)["parameters"][0]


@pytest.mark.parametrize("parts", [("train", "val"), None])
def test_a_folder_of_images_is_resized_split_and_put_into_the_range_of_the_model(parts, tmp_path):
    x, y = images(40)
    big = np.repeat(np.repeat(x, 2, 1), 2, 2)  # 16 x 16
    if parts:
        save_images(tmp_path / parts[0], big, y)
        save_images(tmp_path / parts[1], big[:10], y[:10])
    else:
        save_images(tmp_path, big, y)
    options = {"batch_size": 8, "data_dir": None, "seed": 0}
    found = {}
    for pixels in ("0..255", "0..1", "-1..1"):
        data = read(str(tmp_path), classifier(), pixels=pixels, **options)
        sets = [[len(b[1]) for b in part] for part in (data.train, data.val, data.test)]
        assert [sum(s) for s in sets] == ([36, 4, 10] if parts else [33, 3, 4])
        assert data.batches == len(sets[0])
        assert data.classes == 2
        found[pixels] = next(iter(data.test.as_numpy_iterator()))
    image, label = (values[0] for values in found["0..255"])
    assert image.shape == (8, 8, 3)
    assert (image[2:6, 2:6].mean() > 128) == (label == 0)  # "bright" is the first folder
    assert np.allclose(found["0..1"][0] * 255, found["0..255"][0], atol=1e-3)
    assert np.allclose((found["-1..1"][0] + 1) * 127.5, found["0..255"][0], atol=1e-3)
    rescaling = classifier(rescaling=True)
    same = read(str(tmp_path), rescaling, pixels="0..255", **options)
    assert np.array_equal(next(iter(same.test.as_numpy_iterator()))[0], found["0..255"][0])
    with pytest.raises(InvalidArgumentError, match=r"has a Rescaling layer .* --pixels 0\.\.1 would scale them twice"):
        read(str(tmp_path), rescaling, pixels="0..1", **options)


def test_a_split_uses_every_sample_once_and_training_is_mixed(tmp_path):
    x, y = images(60)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    data = read(str(tmp_path / "d.npz"), classifier(), batch_size=16, pixels=None, data_dir=None, seed=0)
    taken = [np.concatenate([b[0] for b in part.as_numpy_iterator()]) for part in (data.train, data.val, data.test)]
    assert [len(t) for t in taken] == [49, 5, 6]
    assert {a.tobytes() for t in taken for a in t} == {a.tobytes() for a in x}
    again = np.concatenate([b[0] for b in data.train.as_numpy_iterator()])
    assert not np.array_equal(taken[0], again)


def test_a_set_of_tensorflow_datasets_is_read(tmp_path, trained, capsys):
    tfds = pytest.importorskip("tensorflow_datasets")
    label, parts = tfds.features.ClassLabel(num_classes=10), {}
    for number, (name, count) in enumerate({"train": 50, "test": 6}.items()):
        x, y = images(count, number)
        big = np.uint8(np.repeat(255 * x, 2, 1))  # 16 x 8
        parts[name] = tf.data.Dataset.from_tensor_slices({"image": big, "label": y})
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(16, 8, 3)), "label": label})
    tfds.dataset_builders.store_as_tfds_dataset(
        "squares", features=features, split_datasets=parts, data_dir=tmp_path, config="small", version="1.0.0"
    )
    for channels in (3, 1):
        model = classifier(classes=10, rescaling=True, shape=(8, 8, channels))
        data = read("squares/small", model, batch_size=8, pixels=None, data_dir=str(tmp_path), seed=0)
        assert [sum(len(b[1]) for b in part) for part in (data.train, data.val, data.test)] == [45, 5, 6]
        x, y = next(iter(data.test.as_numpy_iterator()))
        assert data.classes == 10
        assert x.shape == (6, 8, 8, channels)
        assert np.array_equal(x[:, 2:6, 2:6].mean((1, 2, 3)) > 128, y == 1)
    capsys.readouterr()
    options = ["--max-macs", "0.5", "--pixels", "0..1", "--data-dir", tmp_path, "--data"]
    for name in ("none_such", "squares/large"):
        message = refused(capsys, trained / "model.keras", tmp_path / "small.keras", *options, name)
        assert f"{name} is neither a folder nor a set that can be read" in message


def refused(capsys, *arguments):
    """The one line that says what is wrong with the data or the model."""
    assert main(["prune", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert "before" not in out
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, "has the arrays ['a']; expected x and y"),
        ({"x": np.zeros((30, 8, 8, 3)), "y": np.zeros((30, 4))}, "y must hold one whole number, the class"),
        ({"x": np.zeros((30, 9, 8, 3)), "y": np.zeros(30, int)}, "the model takes (samples, *(8, 8, 3))"),
        ({"x": np.zeros((10, 8, 8, 3)), "y": np.zeros(10, int)}, "has 10 samples; at least 20 are needed"),
        (
            {"x": np.zeros((40, 8, 8, 3)), "y": np.arange(40)},
            "the data has 40 classes, but model 'squares' has 2 outputs",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays, message, trained, tmp_path, capsys):
    np.savez(tmp_path / "d.npz", **arrays)
    options = ["--max-macs", "0.5", "--data", tmp_path / "d.npz"]
    assert message in refused(capsys, trained / "model.keras", tmp_path / "small.keras", *options)
    assert [p.name for p in tmp_path.iterdir()] == ["d.npz"]


def test_what_is_no_source_or_not_clear_is_named(trained, tmp_path, capsys):
    model, small = trained / "model.keras", tmp_path / "small.keras"
    (tmp_path / "empty").mkdir()
    limit = ["--max-macs", "0.5"]
    for options, message in (
        (["--data", tmp_path / "empty"], "say which pixel values it was trained on: --pixels 0..255, 0..1, -1..1"),
        (["--data", tmp_path / "empty", "--pixels", "0..1"], "holds no folders of images, one for each class"),
        (["--data", tmp_path / "no.npz"], "no.npz does not exist"),
        (["--data", trained / "data.npz", "--pixels", "0..1"], "--pixels is for images; the arrays of"),
        (["--tune-epochs", "3", "--quiet"], "without --data, there is nothing to do for --tune-epochs, --quiet"),
        (["--data", tmp_path / "no.npz", "--tflite", tmp_path / "x.lite"], "x.lite must end in .tflite"),
    ):
        assert message in refused(capsys, model, small, *limit, *options)
    assert "no limit given" in refused(capsys, model, small, "--data", trained / "data.npz")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: classifier("tanh"), "the activation 'tanh', so its loss is not clear"),
        (lambda: classifier("softmax", classes=1), "the activation 'softmax', so its loss is not clear"),
        (lambda: keras.Model(i := keras.Input((8, 8, 3)), L.Conv2D(2, 3)(i), name="maps"), "takes classifiers"),
    ],
)
def test_models_whose_loss_is_not_clear_are_refused(build, message, trained, tmp_path, capsys):
    build().save(tmp_path / "m.keras")
    options = ["--max-macs", "0.5", "--data", trained / "data.npz"]
    assert message in refused(capsys, tmp_path / "m.keras", tmp_path / "small.keras", *options)


def test_several_inputs_and_flipped_vectors_are_refused(trained, tmp_path, capsys):
    a, b = keras.Input((4,)), keras.Input((4,))
    keras.Model([a, b], L.Dense(2)(L.Dense(4)(L.Add()([a, b])))).save(tmp_path / "two.keras")
    keras.Model(a, L.Dense(2)(L.Dense(4)(a))).save(tmp_path / "one.keras")
    np.savez(tmp_path / "d.npz", x=np.zeros((40, 4)), y=np.arange(40) % 2)
    options = [tmp_path / "small.keras", "--max-macs", "0.5", "--data", tmp_path / "d.npz", "--flip"]
    assert "has 2 inputs; --data takes classifiers with one" in refused(capsys, tmp_path / "two.keras", *options)
    assert "--flip is for images" in refused(capsys, tmp_path / "one.keras", *options)


@pytest.mark.parametrize(("activation", "classes"), [("softmax", 2), (None, 1), ("sigmoid", 1)])
def test_the_last_layer_says_loss_and_threshold(activation, classes):
    model = classifier(activation, classes)
    compile_classifier(model, 0.01, 10, 2)
    x, y = images(64)
    model.fit(x, y, epochs=20, verbose=0)
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    assert found["accuracy"] > 0.9
    outputs = model.predict(x, verbose=0)
    classes_found = outputs.argmax(-1) if classes > 1 else outputs[:, 0] > (0 if activation is None else 0.5)
    assert found["accuracy"] == pytest.approx(np.mean(classes_found == y))


def test_nothing_of_tensorflow_is_logged(trained, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "keras_pcp", "inspect", str(trained / "model.keras"), "--frozen-layers", "none"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(keras_pcp.__file__).parents[1])
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"keras-pcp: error: .*\n", done.stderr)

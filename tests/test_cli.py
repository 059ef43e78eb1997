"""The command: what it prints and writes, and its errors of one line."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from full_disks import full_disk
from keras import layers as L
from zoo import build, inputs_for

import keras_pcp
from keras_pcp.cli import _CRITERIA, _parser, main

ODD_LAYERS = """
import keras
import keras_pcp

class Odd(keras.layers.Layer):
    def build(self, input_shape):
        self.factor = self.add_weight(shape=())

    def call(self, x):
        return x * self.factor

class Known(keras.layers.Layer):
    def call(self, x):
        return 2 * x

@keras_pcp.register_rule(Known)
def known(site):
    return site.inputs[0]
"""


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.keras"
    build("residual").save(path)
    return str(path)


@pytest.fixture
def with_odd_layer(tmp_path, monkeypatch):
    """A file with layers that have to be named, one of them without a rule; its module lies in the working directory."""
    (tmp_path / "odd_layers.py").write_text(ODD_LAYERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_layers", raising=False)
    import odd_layers

    i = keras.Input((4, 4, 3))
    x = odd_layers.Known(name="known")(L.Conv2D(5, 1, name="free")(i))
    x = odd_layers.Odd(name="odd")(L.Conv2D(4, 1, name="before")(x))
    keras.Model(i, L.Conv2D(2, 1)(x)).save("odd.keras")
    return "odd.keras"


def failed(capsys, *arguments):
    """The one line that a failing command prints."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("keras-pcp: error: ")
    assert err.count("\n") == 1
    return err


def test_inspect_prints_the_report_of_the_graph(saved, capsys):
    assert main(["inspect", saved]) == 0
    assert capsys.readouterr().out == f"{keras_pcp.build_graph(keras.models.load_model(saved))}\n"


def test_inspect_as_module_prints_json_and_nothing_else_on_stdout(saved):
    command = [sys.executable, "-m", "keras_pcp", "inspect", saved, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(keras_pcp.__file__).parents[1])
    cost = keras_pcp.count_cost(keras.models.load_model(saved))
    assert json.loads(done.stdout)["full"] == {"macs": cost.macs, "params": cost.params, "bytes": cost.bytes}


def test_inspect_takes_frozen_layers(saved, capsys):
    names = [name for group in keras_pcp.build_graph(keras.models.load_model(saved)) for name in group.producers]
    assert main(["inspect", saved, "--json", "--frozen-layers", f"{names[0]}, {names[-1]}"]) == 0
    frozen = {r["text"]: r["layers"] for r in json.loads(capsys.readouterr().out)["frozen"]}
    assert {names[0], names[-1]} <= set(frozen["named in frozen_layers"])


def test_custom_objects_are_imported_with_their_rules(with_odd_layer, capsys):
    objects = ["--custom-objects", "odd_layers:Odd,odd_layers:Known"]
    assert main(["inspect", "--json", "--on-unknown", "freeze", *objects, with_odd_layer]) == 0
    assert [g["name"] for g in json.loads(capsys.readouterr().out)["groups"]] == ["free"]
    assert "'odd' (Odd) has no rule" in failed(capsys, "inspect", with_odd_layer, *objects)
    assert "--custom-objects module:Name" in failed(capsys, "inspect", with_odd_layer)


def test_a_module_that_registers_its_classes_is_named_alone(with_odd_layer, tmp_path, capsys):
    register = "keras.saving.register_keras_serializable()"
    text = (tmp_path / "odd_layers.py").read_text().replace("class ", f"@{register}\nclass ")
    (tmp_path / "registered_layers.py").write_text(text)
    i = keras.Input((4, 4, 3))
    sys.path_importer_cache.clear()
    import registered_layers

    keras.Model(i, registered_layers.Known()(L.Conv2D(4, 1)(i))).save("registered.keras")
    assert main(["inspect", "registered.keras", "--custom-objects", "registered_layers"]) == 0
    assert "0 channel groups" in capsys.readouterr().out


@pytest.mark.parametrize("reference", ["no_such_module:Odd", "odd_layers:Other", ":Odd"])
def test_wrong_custom_objects_are_named(reference, with_odd_layer, capsys):
    message = failed(capsys, "inspect", with_odd_layer, "--custom-objects", reference)
    assert f"--custom-objects {reference}: " in message


def test_prune_writes_a_model_that_meets_the_limit(saved, tmp_path, capsys):
    target = tmp_path / "small.keras"
    assert main(["prune", saved, str(target), "--max-macs", "0.5", "--multiple-of", "2"]) == 0
    full, small = keras.models.load_model(saved), keras.models.load_model(target)
    before, after = keras_pcp.count_cost(full).macs, keras_pcp.count_cost(small).macs
    assert after <= 0.5 * before
    assert small(inputs_for(full)).shape == full(inputs_for(full)).shape
    out = capsys.readouterr().out
    assert f"{before:,.0f}" in out
    assert f"{after:,.0f}" in out
    assert "add --data, or fine-tune it yourself" in out


def test_prune_takes_absolute_limits_and_a_least_width(saved, tmp_path):
    target = tmp_path / "small.keras"
    limit = keras_pcp.count_cost(keras.models.load_model(saved)).params * 3 // 4
    assert main(["prune", saved, str(target), "--max-params", str(limit), "--min-channels", "3"]) == 0
    small = keras.models.load_model(target)
    assert small.count_params() <= limit
    assert min(g.num_channels for g in keras_pcp.build_graph(small)) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-macs", "1"], "cannot get below"),
        (["--max-macs", "1.5"], "must be a float in (0, 1)"),
        ([], "no limit given"),
        (["--max-macs", "0.5", "--criterion", "size"], "criterion must be"),
        (["--max-macs", "0.5", "--criterion", "taylor"], "needs data"),
        (["--max-macs", "0.5", "--frozen-layers", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_pruned_is_said_and_nothing_is_written(options, message, saved, tmp_path, capsys):
    assert message in failed(capsys, "prune", saved, str(tmp_path / "small.keras"), *options)
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_prune_does_not_overwrite_its_model(saved, capsys):
    assert "would overwrite" in failed(capsys, "prune", saved, saved, "--max-macs", "0.5")


@pytest.mark.parametrize(("command", "suffix"), [("prune", ".keras"), ("export", ".tflite")])
def test_targets_are_checked_before_the_work(command, suffix, tmp_path, capsys):
    assert f"must end in {suffix}" in failed(capsys, command, "unread.keras", str(tmp_path / "small.h5"))
    assert "folder" in failed(capsys, command, "unread.keras", str(tmp_path / "nowhere" / f"small{suffix}"))


def test_export_and_bench_give_a_file_and_its_latency(saved, tmp_path, capsys):
    samples, target = tmp_path / "x.npy", tmp_path / "model.tflite"
    np.save(samples, inputs_for(keras.models.load_model(saved), 8))
    options = ["--quantization", "int8", "--representative-data", str(samples)]
    assert main(["export", saved, str(target), *options]) == 0
    assert f"wrote {target}: {target.stat().st_size:,} bytes" in capsys.readouterr().out
    assert main(["bench", str(target), saved, "--runs", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["bytes", "median,", "ms", "90", "%", "below", "speedup"]
    assert lines[1].split()[:2] == [str(target), f"{target.stat().st_size:,}"]
    assert lines[1].endswith(" 1.00x")
    (_, _, first, high, _), (name, _, second, _, speedup) = (line.split() for line in lines[1:3])
    assert name == saved
    assert 0 < float(first) <= float(high)
    assert float(speedup[:-1]) == pytest.approx(float(first) / float(second), rel=0.1)


def test_samples_for_several_inputs_go_by_name_or_in_order(tmp_path, capsys):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    keras.Model([b, a], L.Dense(2)(L.Concatenate()([L.Dense(3)(a), b]))).save(tmp_path / "two.keras")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(4, 3))
    command = ["export", str(tmp_path / "two.keras"), str(tmp_path / "two.tflite"), "--quantization", "int8"]
    command += ["--representative-data", str(tmp_path / "x.npz")]
    np.savez(tmp_path / "x.npz", a=x, b=y)
    assert main(command) == 0
    np.savez(tmp_path / "x.npz", y, x)
    assert main(command) == 0
    capsys.readouterr()
    np.savez(tmp_path / "x.npz", a=x, y=y)
    assert "has the entries ['a', 'y'], the model takes ['b', 'a']" in failed(capsys, *command)


def test_bench_takes_a_keras_model_too(saved, tmp_path, capsys):
    assert main(["bench", saved, "--runs", "5", "--threads", "2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith(f"{saved} ")
    assert out.endswith("one sample on 2 threads of this CPU, 5 runs of each in turn\n")
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "missing.keras"],
        ["prune", "missing.keras", "small.keras", "--max-macs", "0.5"],
        ["export", "missing.keras", "small.tflite"],
        ["bench", "missing.tflite"],
    ],
    ids=lambda a: a[0],
)
def test_a_missing_file_is_named(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert f"file {arguments[1]} does not exist" in failed(capsys, *arguments)


def test_missing_or_broken_samples_are_named(saved, tmp_path, capsys):
    (tmp_path / "broken.npy").write_text("no numbers")
    for name, message in (("missing.npy", "does not exist"), ("broken.npy", "is not a .npy or .npz file")):
        arguments = ["export", saved, str(tmp_path / "m.tflite"), "--representative-data", str(tmp_path / name)]
        assert message in failed(capsys, *arguments)


def test_files_that_hold_no_model_are_named(tmp_path, capsys):
    for name, command, message in (
        ("m.keras", "inspect", "it is not a .keras file"),
        ("m.h5", "inspect", "cannot load"),
        ("m.tflite", "bench", "LiteRT cannot run"),
    ):
        (tmp_path / name).write_text("no model")
        assert message in failed(capsys, command, str(tmp_path / name))


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["guess", "m.keras"], ["bench", "m.tflite", "--threads", "0"]])
def test_a_wrong_command_line_ends_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: keras-pcp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "a.keras", "b.keras", "--max-macs", "abc"], "must be a fraction such as 0.5 or a whole number"),
        (["bench", "a.tflite", "--runs", "x"], "must be a whole number of at least 1, got 'x'"),
    ],
)
def test_numbers_that_are_none_are_named_without_private_functions(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    err = capsys.readouterr().err
    assert message in err
    assert "invalid _" not in err


def test_a_full_disk_leaves_an_existing_target(saved, tmp_path, capsys):
    target = tmp_path / "small.keras"
    target.write_text("good")
    with full_disk(2000):
        message = failed(capsys, "prune", saved, str(target), "--max-macs", "0.5")
    assert f"cannot write {target}: File too large" in message
    assert target.read_text() == "good"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.keras", "small.keras"]


def test_an_interrupt_is_exit_code_130_and_leaves_nothing(saved, tmp_path, capsys, monkeypatch):
    def interrupted(model, path):
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", interrupted)
    assert main(["prune", saved, str(tmp_path / "small.keras"), "--max-macs", "0.5"]) == 130
    assert capsys.readouterr().err == "keras-pcp: interrupted\n"
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_output_that_cannot_be_written_is_an_error_of_one_line(saved, capsys, monkeypatch):
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert main(["inspect", saved]) == 2
    assert capsys.readouterr().err == "keras-pcp: error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("command", ["inspect", "prune", "export", "bench"])
def test_every_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    example = " ".join(capsys.readouterr().out.split()).rpartition("example: keras-pcp ")[2]
    assert _parser().parse_args(example.split()).run.__name__ == command


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"keras-pcp {keras_pcp.__version__}\n"


def test_help_lists_the_criteria_that_need_no_data():
    free = [name for name, c in keras_pcp.criteria.BY_NAME.items() if not getattr(c, "needs_data", False)]
    assert ["l1", *_CRITERIA] == free

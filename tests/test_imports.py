"""What `import keras_pcp` brings: all names, but neither Keras nor TensorFlow before they are needed."""

import subprocess
import sys

import pytest

import keras_pcp


def run(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def test_the_help_of_the_command_needs_neither_keras_nor_tensorflow():
    code = (
        "import sys, contextlib, keras_pcp.cli\n"
        "with contextlib.suppress(SystemExit):\n"
        "    keras_pcp.cli.main(['--help'])\n"
        "print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    text = run(code)
    assert "usage: keras-pcp" in text
    assert text.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "none.keras"], "none.keras does not exist"),
        (["inspect", "text.keras"], "it is not a .keras file"),
        (["prune", "none.keras", "b.keras", "--max-macs", "0.5"], "none.keras does not exist"),
        (["prune", "none.keras", "b.keras"], "no limit given: pass --max-macs"),
        (["export", "none.keras", "b.tflite"], "none.keras does not exist"),
        (["bench", "none.tflite"], "none.tflite does not exist"),
    ],
)
def test_a_missing_model_or_limit_is_said_before_keras_is_loaded(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.keras").write_text("a text")
    code = (
        "import sys, keras_pcp.cli\n"
        "sys.stderr = sys.stdout\n"
        "print(keras_pcp.cli.main(sys.argv[1:]), sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    said, end = run(code, *arguments).splitlines()
    assert message in said
    assert end == "2 []"


def test_every_name_of_the_top_level_can_be_had_and_others_are_errors():
    assert len(keras_pcp.__all__) <= 37
    for name in keras_pcp.__all__:
        assert getattr(keras_pcp, name) is not None
    assert set(keras_pcp.__all__) <= set(dir(keras_pcp))
    with pytest.raises(AttributeError, match="OneShot"):
        _ = keras_pcp.OneShot


def test_a_model_that_holds_our_layers_can_be_loaded_after_the_two_imports(tmp_path):
    make = (
        "import sys, keras, keras_pcp\n"
        "x = keras.Input((4,))\n"
        "y = keras_pcp.GradientReversal(0.5)(x)\n"
        "keras.Model(x, keras.layers.Dense(1)(y)).save(sys.argv[1])"
    )
    load = "import sys, keras, keras_pcp\nprint(keras.models.load_model(sys.argv[1]).layers[1].__class__.__name__)"
    run(make, str(tmp_path / "model.keras"))
    assert run(load, str(tmp_path / "model.keras")).split()[-1] == "GradientReversal"

"""What mypy says of the package, and of a script that uses it. Keras and TensorFlow have no types."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(cache, *arguments, folder=ROOT):
    """Runs mypy outside the repository's own cache; the package is found as one that is installed, by the path."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", f"--cache-dir={cache}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_has_no_type_errors(tmp_path):
    check(tmp_path)


def test_a_script_of_a_user_has_none_by_strict_rules(tmp_path):
    script = str(ROOT / "tests" / "typing_user.py")
    check(tmp_path, "--strict", "--ignore-missing-imports", script, folder=tmp_path)

"""The layout holds: imports point downwards, private Keras access stays in one module, files stay short."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_pcp"
# Lowest first: a module may import only modules of earlier lines (and, within a package, its own).
ORDER = """
version errors changes containers living
files conversion
checks
channels labels internals schedules patches
narrowing samples monitor finite
trace probing
sizes rules effects likeness
counting inside
blocks
recorder
graph contributions
cost statistics following
criteria selection masks live calibration
inspection reconstruction recalibration compensation surgery strategies delivery recording
evaluation report recovery preflight
plots attempts
search adaptation clock checkpoints
session width_search
callbacks export testing
cli
__init__
__main__
""".split("\n")
# What prints or draws itself may import upwards inside a method: (module, module above it).
LAZY = {("report", "plots"), ("channels", "inspection")}
LEVEL = {name: level for level, line in enumerate(ORDER) for name in line.split()}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = unit(path)
    assert own in LEVEL, f"place {own} in the order of modules"
    tree = ast.parse(path.read_text())
    local = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_pcp"):
            used = node.module.split(".")[1:2] or [a.name for a in node.names]
            for name in used:
                lazily = (own, name) in LAZY and id(node) in local
                typing_only = own == "plots" and name == "report"
                assert name == own or LEVEL[name] < LEVEL[own] or lazily or typing_only, f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_attributes_of_others_are_touched_in_one_module_only(path):
    if path.name == "internals.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            assert isinstance(node.value, ast.Name), f"line {node.lineno}"
            assert node.value.id in ("self", "cls", "callback"), f"line {node.lineno}"


def test_the_strategies_know_neither_keras_nor_surgery():
    for path in (PACKAGE / "strategies").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in [*names, module]:
                assert not name.startswith(("keras.", "tensorflow", "keras_pcp.live", "keras_pcp.surgery")), name
                assert name != "keras"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            assert node.end_lineno - start <= 45, f"{node.name} has {node.end_lineno - start} lines"


def test_every_private_name_is_in_the_table_of_internals():
    text = (PACKAGE / "internals.py").read_text()
    tree = ast.parse(text)
    table = ast.get_docstring(tree)
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and re.match(r"_[a-z]", n.attr)}
    assert {name for name in used if f"`{name}`" not in table and f".{name}`" not in table} == set()

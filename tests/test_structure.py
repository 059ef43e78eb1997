"""Private Keras access stays in one module, files stay short. Imports point downwards: `lint-imports` checks that."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_pcp"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = Path(__file__).parent
MIRRORED = sorted(TESTS.glob("*/**/test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_attributes_of_others_are_touched_in_one_module_only(path):
    if path == PACKAGE / "support" / "internals.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            assert isinstance(node.value, ast.Name), f"line {node.lineno}"
            assert node.value.id in ("self", "cls", "callback"), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            assert node.end_lineno - start <= 45, f"{node.name} has {node.end_lineno - start} lines"


def test_every_private_name_is_in_the_table_of_internals():
    text = (PACKAGE / "support" / "internals.py").read_text()
    tree = ast.parse(text)
    table = ast.get_docstring(tree)
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and re.match(r"_[a-z]", n.attr)}
    assert {name for name in used if f"`{name}`" not in table and f".{name}`" not in table} == set()


@pytest.mark.parametrize("path", MIRRORED, ids=lambda p: str(p.relative_to(TESTS)))
def test_a_test_in_a_folder_stands_where_the_module_does_that_it_names(path):
    module = PACKAGE / path.relative_to(TESTS).with_name(path.stem.removeprefix("test_"))
    assert module.with_suffix(".py").exists() or (module / "__init__.py").exists()

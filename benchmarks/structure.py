"""Measures how the package is laid out, one JSON line for each folder of keras_pcp.

python benchmarks/structure.py --label after                      # this checkout
python benchmarks/structure.py --label before --commit 53c44e5    # another commit, from `git archive`
python benchmarks/structure.py --print                            # print the rows, write nothing

A row replaces earlier rows with the same label in benchmarks/results/structure.jsonl. `lines` counts lines of code: no
blank lines, comments or docstrings. `class` is the class with the most attributes and methods together; an attribute is a
name that is assigned on `self`, or a field of a dataclass. `imports` counts the import statements that lead to another
folder, without those under `if TYPE_CHECKING`. Modules outside any folder count as the folder ".".
"""

import argparse
import ast
import io
import json
import subprocess
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rows import read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "structure.jsonl"
PACKAGE = "keras_pcp"
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def measure(checkout: Path) -> list[dict]:
    """Returns a row for each folder of the package in a checkout, the modules outside any folder first."""
    package = checkout / PACKAGE
    files: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        files.setdefault(_folder(path.relative_to(package)), []).append(path)
    rows = []
    for folder, paths in files.items():
        trees = [ast.parse(path.read_text()) for path in paths]
        classes = [_class(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        name, attributes, methods = max([("", 0, 0), *classes], key=lambda c: c[1] + c[2])
        found = Counter(target for tree in trees for target in _imports(tree, package) if target != folder)
        rows.append(
            {
                "folder": folder,
                "modules": len(paths),
                "lines": sum(map(_lines_of_code, paths)),
                "class": name,
                "attributes": attributes,
                "methods": methods,
                "imports": dict(sorted(found.items())),
            }
        )
    return sorted(rows, key=lambda row: row["folder"])


def _folder(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else "."


def _lines_of_code(path: Path) -> int:
    text = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, node.end_lineno + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def _class(node: ast.ClassDef) -> tuple[str, int, int]:
    """Returns (name, number of attributes, number of methods) of a class."""
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    on_self = {
        n.attr
        for method in methods
        for n in ast.walk(method)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and getattr(n.value, "id", "") == "self"
    }
    return node.name, len(fields | on_self), len(methods)


def _imports(tree: ast.AST, package: Path) -> Iterator[str]:
    """Yields the folder that each import statement of a module leads to."""
    for node in _outside_type_checking(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        targets = {tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == PACKAGE}
        yield from {t[0] if t and (package / t[0]).is_dir() else "." for t in targets}


def _outside_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_type_checking(child)


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="after", help="name of the rows: before or after (the default)")
    parser.add_argument("--commit", help="measure this commit instead of the checkout")
    parser.add_argument("--print", action="store_true", help="print the rows and write nothing")
    args = parser.parse_args()
    commit = _git("rev-parse", "--short=7", args.commit or "HEAD").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        if args.commit:
            with tarfile.open(fileobj=io.BytesIO(_git("archive", args.commit, PACKAGE))) as archive:
                archive.extractall(folder, filter="data")
        found = measure(Path(folder) if args.commit else ROOT)
    new = [{"suite": "structure", "label": args.label, "commit": commit, **row} for row in found]
    for row in new:
        print(json.dumps(row))
    if not args.print:
        rows = [row for row in read(RESULTS) if row["label"] != args.label] + new
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()

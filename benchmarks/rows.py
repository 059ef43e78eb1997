"""Result files: one JSON object a line, appended as a run goes on, so that a run can be resumed."""

import json
from pathlib import Path


def read(path: Path | None) -> list[dict]:
    """Returns the rows of a file; none if there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def write(row: dict, path: Path | None) -> None:
    """Prints a row, and appends it to a file if one is given."""
    line = json.dumps(row)
    print(line, flush=True)
    if path:
        with path.open("a") as file:
            file.write(line + "\n")

"""Fills the tables of README.md and docs/results.md from benchmarks/results/*.jsonl.

python benchmarks/tables.py           # rewrite the tables
python benchmarks/tables.py --check   # exit with 1 if a table is out of date
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str) -> list[dict]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(header: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join(lines + ["| " + " | ".join(line) + " |" for line in body])


def digits() -> str:
    """The last recorded run of examples/prune_in_fit.py on the digits."""
    row = rows("digits")[-1]
    styles = {"test accuracy": ".4f", "latency, ms": ".3f", "LiteRT error": ".1e"}
    body = []
    for name, old in row["before"].items():
        new, style = row["after"][name], styles.get(name, ",.0f")
        ratio = "" if name == "LiteRT error" else f"{new / old:.3f}"
        body.append([name, format(old, style), format(new, style), ratio])
    return table(["digits, residual network", "before", "after", "ratio"], body)


def pretrained() -> str:
    """Mean and range over the seeds for each method and target."""
    found: dict[tuple, list[dict]] = {}
    for row in rows("pretrained"):
        found.setdefault((row["target"], row["method"]), []).append(row)
    body = []
    for (target, method), group in sorted(found.items(), reverse=True):
        acc = [r["acc"] for r in group]
        val = [r["val_acc"] for r in group]
        macs = statistics.mean(r["macs"] for r in group)
        params = statistics.mean(r["params"] for r in group)
        body.append(
            [f"{target}", method, f"{macs:.3f}", f"{params:.3f}", f"{statistics.mean(val):.4f}",
             f"{statistics.mean(acc):.4f}", f"{min(acc):.4f} to {max(acc):.4f}", str(len(acc))]
        )  # fmt: skip
    return table(["limit", "method", "MACs", "parameters", "validation", "test", "range", "seeds"], body)


def fit_time() -> str:
    """One line a repeat."""
    body = [
        [str(r["epochs"]), f"{r['plain_seconds']:.0f}", f"{r['pruning_seconds']:.0f}", f"{r['ratio']:.3f}",
         f"{r['attempts_seconds']:.1f}", f"{r['surgery_seconds']:.1f}", f"{r['retracing_seconds']:.1f}",
         str(r["rounds"]), str(r["shrinks"])]
        for r in rows("fit_time")
    ]  # fmt: skip
    header = ["epochs", "fit, s", "fit with pruning, s", "ratio", "attempts, s", "surgery, s", "retracing, s"]
    return table([*header, "rounds", "shrinks"], body)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    makers = {f.__name__: f for f in (digits, pretrained, fit_time)}
    stale = []
    for path in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        text = path.read_text()

        def fill(match: re.Match) -> str:
            return f"<!-- table: {match[1]} -->\n{makers[match[1]]()}\n<!-- end -->"

        new = re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.S)
        if new != text:
            stale.append(path.name)
            if not args.check:
                path.write_text(new)
    print("out of date: " + ", ".join(stale) if stale else "tables are up to date")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())

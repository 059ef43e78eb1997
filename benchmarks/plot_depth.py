"""Draws docs/images/depth.png from benchmarks/results/depth.jsonl."""

from pathlib import Path

from matplotlib.figure import Figure
from rows import read

ROOT = Path(__file__).parents[1]


def main() -> None:
    rows = read(ROOT / "benchmarks" / "results" / "depth.jsonl")
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, key, title in zip(figure.subplots(1, 2), ("graph_s", "shrink_s"), ("build_graph", "shrink"), strict=True):
        for kind in dict.fromkeys(r["kind"] for r in rows):
            line = [r for r in rows if r["kind"] == kind]
            axes.plot([r["layers"] for r in line], [1e3 * r[key] / r["layers"] for r in line], "o-", label=kind, ms=4)
        axes.set(title=title, xlabel="layers", ylabel="ms per layer", xscale="log", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(ROOT / "docs/images/depth.png", dpi=110)


if __name__ == "__main__":
    main()

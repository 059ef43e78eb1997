"""Figures. They need matplotlib, which is an extra: `pip install keras-pcp[plots]`."""

from typing import TYPE_CHECKING, Any

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support.files import check_target, replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keras_pcp.deliver.report import PruningReport

_BEFORE, _AFTER, _METRIC = "#c9d3de", "#2166ac", "#b2182b"


def saved(figure: Any, path: "str | Path | None") -> Any:
    """Writes a figure to a file, as a PNG if the path has no suffix; None writes nothing. Returns the figure.

    Raises:
        InvalidArgumentError: the file cannot be written, or matplotlib does not know its format.
        FileError: the system cannot write it.
    """
    if path is not None:
        path = check_target(path)
        try:
            with replacing(path if path.suffix else path.with_name(path.name + ".png")) as part:
                figure.savefig(part, dpi=120, bbox_inches="tight")
        except ValueError as error:
            raise InvalidArgumentError(f"cannot draw {path}: {error}") from error
    return figure


def plot_report(report: "PruningReport") -> Any:
    """Returns a figure: the width of each group before and after, and cost and metric over the rounds.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
    _plot_widths(left, report)
    _plot_rounds(right, report)
    return figure


def plot_front(front: "Sequence[tuple[dict[str, float], float]]", found: "tuple[dict[str, float], float]") -> Any:
    """Returns a figure: error against cost of the best sub-nets, and the one that was found under the limits.

    Args:
        front: (cost, error) of each sub-net; costs are {"macs": ..., ...}.
        found: those of the sub-net that was found.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found[0]) + 1, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(found[0]), squeeze=False)[0], found[0], strict=True):
        axes.plot([cost[name] for cost, _ in front], [error for _, error in front], color=_AFTER, marker=".")
        axes.plot([found[0][name]], [found[1]], color=_METRIC, marker="o", linestyle="", label="found")
        axes.set_xlabel({"macs": "MACs", "params": "parameters"}.get(name, name))
        axes.set_ylabel("error, sum over stages")
        axes.set_title("the best sub-nets", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plot_widths(axes: Any, report: "PruningReport") -> None:
    names = list(report.widths)
    before = [report.widths[n][0] for n in names]
    now = [report.widths[n][1] for n in names]
    places = range(len(names))
    axes.bar(places, before, color=_BEFORE, label="before")
    axes.bar(places, now, color=_AFTER, width=0.55, label="after")
    axes.set_xticks(places, names, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("channels")
    axes.set_title(f"{report.model_name}: width of each channel group", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_rounds(axes: Any, report: "PruningReport") -> None:
    full = report.before["macs"] or 1
    macs = [1.0, *(r.macs / full for r in report.rounds)]
    axes.step(range(len(macs)), macs, where="post", color=_AFTER)
    axes.set_xlabel("round")
    axes.set_ylabel("MACs (fraction)", color=_AFTER)
    axes.set_ylim(0, 1.05)
    axes.set_title("cost and validation metric", fontsize=10)
    twin = axes.twinx()
    measured = [(i, r.before.metric) for i, r in enumerate(report.rounds) if r.before is not None]
    twin.plot([i for i, _ in measured], [metric for _, metric in measured], color=_METRIC, marker=".")
    twin.set_ylabel("metric before the round", color=_METRIC)
    axes.spines[["top"]].set_visible(False)
    twin.spines[["top"]].set_visible(False)

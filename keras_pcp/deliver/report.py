"""The record of a pruning run. It can be printed, plotted and turned into JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keras_pcp.deliver.page import fragment, page, share
from keras_pcp.graph.selection import Selection
from keras_pcp.plots import plot_report, saved
from keras_pcp.strategies.rounds import Round
from keras_pcp.support.files import write


@dataclass(frozen=True)
class Cut:
    """What one cut did to the model, if the strategy corrects what it cuts.

    Attributes:
        step: training step after which the model was cut.
        errors: {layer: (without, with correction)}: mean squared error of the outputs of each layer that read removed
            channels, in units of the mean square of the outputs, on the latest training batches.
        singular_value: mean singular value of the input-output Jacobian before and after the cut, as a measure of
            trainability; None if it could not be measured.
    """

    step: int
    errors: Mapping[str, tuple[float, float]]
    singular_value: tuple[float, float] | None = None

    @property
    def error(self) -> tuple[float, float]:
        """Means of `errors` over the layers, without and with correction; (0, 0) if there are none."""
        found = list(self.errors.values())
        before, after = (sum(pair[i] for pair in found) / max(len(found), 1) for i in (0, 1))
        return before, after


@dataclass
class PruningReport:
    """Record of a pruning run. It grows during the run.

    Attributes:
        model_name: name of the model.
        limits: {"macs": bound, ...}, absolute.
        before, after: {"macs": ..., "params": ..., "bytes": ...} of the unpruned model and of the model now.
        widths: {group name: (channels before, channels now)}.
        rounds: every round with its attempts, drops, chosen groups, cost.
        shrinks: training steps after which the model became physically smaller.
        cuts: what was lost and corrected in each shrink, if the strategy corrects.
        selection: what has been removed, in the numbering of the unpruned model.
        seconds: time that the callback took: "attempts", "surgery", "retracing" (how much longer than usual the first step
            after a shrink took), "other".
        attempt_macs: multiply-accumulates spent on measuring.
        frozen: (layer, channels, reason) of what was never a candidate.
        notes: which costs are unknown, and how many weights no call of the model uses.
        monitor: what attempts were compared by, and whether higher is better.
        diverged: training step since which pruning is postponed because weights or results are not finite; None if that did
            not happen, or if they became finite again.
        draws: entries of the `history` of a function passed as `validation_data`, such as the share of pseudo-labels used.
        layers: {layer name: (MACs before, MACs now)}.
        logs: {name: value} of the latest epoch of training that ended after the latest cut, as Keras logged them, such as
            "val_accuracy".
    """

    model_name: str
    limits: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]
    widths: dict[str, tuple[int, int]]
    frozen: list[tuple[str, int, str]]
    rounds: list[Round] = field(default_factory=list)
    shrinks: list[int] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    selection: Selection = field(default_factory=Selection)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"attempts": 0.0, "surgery": 0.0, "retracing": 0.0, "other": 0.0}
    )
    attempt_macs: float = 0.0
    draws: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    monitor: str = ""
    diverged: int | None = None
    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    logs: Mapping[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """True if every limit holds."""
        return all(self.after[k] <= bound for k, bound in self.limits.items())

    @property
    def pruning_ratio(self) -> float:
        """Fraction of the channels in groups that has been removed."""
        total = sum(full for full, _ in self.widths.values())
        return 1 - sum(now for _, now in self.widths.values()) / total if total else 0.0

    def __str__(self) -> str:
        lines = [f"Pruning of {self.model_name}: {len(self.rounds)} rounds, {len(self.shrinks)} shrinks"]
        for key, name in (("macs", "MACs"), ("params", "parameters"), ("bytes", "bytes")):
            old, new = self.before[key], self.after[key]
            limit = f"   limit {self.limits[key]:,.0f}" if key in self.limits else ""
            if math.isnan(old):
                lines.append(f"  {name:<11}{'unknown':>15}")
            else:
                lines.append(f"  {name:<11}{old:>15,.0f} -> {new:>13,.0f}  ({new / old if old else 1:6.1%}){limit}")
        lines.append(f"  limits {'reached' if self.reached else 'NOT reached'}")
        if self.logs:
            lines.append("  latest epoch: " + ", ".join(f"{k} {v:.4g}" for k, v in self.logs.items()))
        if self.monitor:
            lines.append(f"  attempts compared by {self.monitor}")
        if self.diverged is not None:
            lines.append(f"  pruning stopped at step {self.diverged}, because training had diverged")
        spent = ", ".join(f"{k} {v:.1f}" for k, v in self.seconds.items())
        lines.append(f"  seconds: {spent}")
        if self.rounds:
            lines.append("  round  step  metric    loss      MACs  attempts  pruned groups")
        for i, r in enumerate(self.rounds, 1):
            before = ("", "") if r.before is None else (f"{r.before.metric:.4f}", f"{r.before.loss:.4f}")
            lines.append(
                f"  {i:>5} {r.step:>5}  {before[0]:>6}  {before[1]:>6}  "
                f"{share(r.macs, self.before['macs']):>7}  {len(r.attempts):>8}  "
                f"{', '.join(r.chosen)}"
            )
        lines += map(_cut_line, self.cuts)
        lines.append(f"  {'group':<28} {'before':>6} {'now':>6}")
        lines += [f"  {name:<28} {full:>6} {now:>6}" for name, (full, now) in self.widths.items()]
        for number, draw in enumerate(self.draws, 1):
            lines.append(f"  samples drawn {number}: " + ", ".join(f"{k} {v:.3f}" for k, v in draw.items()))
        lines += [f"  frozen: {layer} ({count}): {reason}" for layer, count, reason in self.frozen]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """Returns the report as a JSON-ready dict. With `path`, also writes it to that file.

        `"version"` is the version of its layout. Numbers that are not finite, such as unknown costs, are None.
        """
        data = {
            "version": 1,
            "model": self.model_name,
            "limits": dict(self.limits),
            "reached": self.reached,
            "before": dict(self.before),
            "after": dict(self.after),
            "pruning_ratio": self.pruning_ratio,
            "widths": {k: list(v) for k, v in self.widths.items()},
            "layers": {k: list(v) for k, v in self.layers.items()},
            "rounds": [asdict(r) for r in self.rounds],
            "shrinks": list(self.shrinks),
            "cuts": [asdict(c) for c in self.cuts],
            "selection": self.selection.to_json(),
            "seconds": dict(self.seconds),
            "attempt_macs": self.attempt_macs,
            "frozen": [list(f) for f in self.frozen],
            "draws": list(self.draws),
            "logs": dict(self.logs),
            "notes": list(self.notes),
            "monitor": self.monitor,
            "diverged": self.diverged,
        }
        data = json.loads(json.dumps(data), parse_constant=lambda name: None)  # unknown costs are NaN, not valid JSON
        if path is not None:
            write(path, json.dumps(data, indent=1) + "\n")
        return data

    def to_html(self, path: str | Path | None = None) -> str:
        """Returns the report as a page of HTML that needs no other file. With `path`, also writes it to that file.

        It shows the result first, then the width and the cost of each group and layer before and after, every round with
        its attempts, and what is frozen and why. Figures of corrections and drawn samples are only in the text and in JSON.
        """
        text = page(self)
        if path is not None:
            write(path, text)
        return text

    def _repr_html_(self) -> str:
        return fragment(self)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws widths before and after, and cost and metric over the rounds (needs matplotlib).

        Returns the matplotlib figure. With `path`, also saves it to that file.
        """
        return saved(plot_report(self), path)


def _cut_line(cut: Cut) -> str:
    told = []
    if cut.errors:
        told.append("outputs of the next layers differ by {:.1%} without and {:.1%} with correction".format(*cut.error))
    if cut.singular_value is not None:
        told.append("mean singular value {:.4g} -> {:.4g}".format(*cut.singular_value))
    return f"  cut at step {cut.step}: {'; '.join(told) or 'nothing to correct'}"

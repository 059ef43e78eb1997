"""The record of a pruning run as a page of HTML that needs no other file, in light and dark."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from keras_pcp.strategies.rounds import Round

if TYPE_CHECKING:
    from keras_pcp.deliver.report import PruningReport

_NAMES = {"macs": "MACs", "params": "parameters", "bytes": "bytes of the weights"}
_WIDE, _HIGH, _LEFT, _EDGE = 640, 220, 48, 28  # of the chart, its left margin and the others, in pixels
_STYLE = """
.keras-pcp { color-scheme: light dark; --ink: #1b2733; --faint: #5b6b7a; --line: #d5dde5; --then: #c9d3de; --now: #2166ac;
  --metric: #b2182b; color: var(--ink); font: 14px/1.5 system-ui, sans-serif; max-width: 60em; margin: 1em auto;
  padding: .5em 1em; background: Canvas }
@media (prefers-color-scheme: dark) { .keras-pcp { --ink: #e3e9ef; --faint: #9aa8b5; --line: #3a4652; --then: #4c5965;
  --now: #6aaee8; --metric: #f08a7e } }
.keras-pcp h1 { font-size: 1.5em } .keras-pcp h2 { font-size: 1.15em; margin-top: 1.6em }
.keras-pcp table { border-collapse: collapse } .keras-pcp .scroll { overflow-x: auto }
.keras-pcp th, .keras-pcp td { border-bottom: 1px solid var(--line); padding: .2em .7em; text-align: left;
  vertical-align: top }
.keras-pcp .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.keras-pcp .bar { position: relative; width: 14em; height: 1em; margin-top: .25em }
.keras-pcp .bar i { position: absolute; left: 0; height: 100%; background: var(--then) }
.keras-pcp .bar i + i { height: 60%; top: 20%; background: var(--now) }
.keras-pcp svg { max-width: 100%; height: auto; font-size: 11px } .keras-pcp svg text { fill: var(--faint) }
.keras-pcp .faint { color: var(--faint) } .keras-pcp summary { cursor: pointer }
"""


def page(report: "PruningReport") -> str:
    """Returns a whole page around what `fragment` returns."""
    title = escape(f"Pruning of {report.model_name}")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    paper = "<style>html { color-scheme: light dark; background: Canvas }</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{paper}</head><body>\n{fragment(report)}\n</body></html>\n'


def fragment(report: "PruningReport") -> str:
    """Returns the record as a part of a page, as notebooks show it: the result first, then widths, costs and rounds."""
    parts = [
        f"<h1>{escape(_headline(report))}</h1>",
        _summary(report),
        _costs(report),
        _chart(report.rounds, report.before["macs"]),
        _widths(report),
        _layers(report),
        _rounds(report),
        _frozen(report),
    ]
    return f'<div class="keras-pcp"><style>{_STYLE}</style>' + "\n".join(filter(None, parts)) + "</div>"


def _headline(report: "PruningReport") -> str:
    key = next(iter(report.limits), "macs")
    if report.shrinks:
        told = f"pruned to {share(report.after[key], report.before[key])} of the {_NAMES[key]}"
    else:
        told = "nothing to prune, all limits hold" if report.reached else "not pruned yet"
    return f"{report.model_name}: {told}"


def _summary(report: "PruningReport") -> str:
    told = [
        "All limits hold." if report.reached else "The limits do not hold yet.",
        f"{_count(len(report.rounds), 'round')}, {_count(len(report.shrinks), 'cut')}.",
    ]
    if report.logs:
        told.append(f"Latest epoch: {', '.join(f'{name} {value:.4g}' for name, value in report.logs.items())}.")
    if report.monitor:
        told.append(f"Attempts were compared by {report.monitor}.")
    if report.diverged is not None:
        told.append(f"Training had diverged at step {report.diverged}, so pruning stopped there.")
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    return f'<p>{escape(" ".join(told))}</p><p class="faint">Time of the callback: {escape(spent)}.</p>'


def _costs(report: "PruningReport") -> str:
    body = []
    for key, name in _NAMES.items():
        old, new = report.before[key], report.after[key]
        limit = _figure(report.limits[key]) if key in report.limits else ""
        body.append([name, _figure(old), _figure(new), share(new, old), limit])
    return _table(["", "before", "now", "ratio", "limit"], body, numbers=(1, 2, 3, 4))


def _widths(report: "PruningReport") -> str:
    most = max((full for full, _ in report.widths.values()), default=1)
    body = [
        [name, str(full), str(now), _Html(_bar(full / most, now / most))] for name, (full, now) in report.widths.items()
    ]
    return "<h2>Channels of each group</h2>" + _table(["group", "before", "now", ""], body, numbers=(1, 2))


def _layers(report: "PruningReport") -> str:
    known = {name: pair for name, pair in report.layers.items() if pair[0] > 0}
    if not known:
        return ""
    most = max(old for old, _ in known.values())
    body = [
        [name, _figure(old), _figure(new), share(new, old), _Html(_bar(old / most, new / most))]
        for name, (old, new) in known.items()
    ]
    return "<h2>MACs of each layer</h2>" + _table(["layer", "before", "now", "ratio", ""], body, numbers=(1, 2, 3))


def _rounds(report: "PruningReport") -> str:
    if not report.rounds:
        return ""
    found = [_round(number, r, report.before["macs"]) for number, r in enumerate(report.rounds, 1)]
    told = '<p class="faint">Open a round to see its attempts.</p>' if any(r.attempts for r in report.rounds) else ""
    return f"<h2>Rounds</h2>{told}" + "".join(found)


def _round(number: int, found: Round, macs: float) -> str:
    metric = f", metric {found.before.metric:.4f} before it" if found.before else ""
    kept = "" if found.how == "cut" else " without the channels that are zero"
    head = (
        f"{number}. Step {found.step}: {share(found.macs, macs)} of the MACs{kept}{metric}. {', '.join(found.chosen)}"
    )
    if not found.attempts:
        return f"<p>{escape(head)}</p>"
    body = [
        [
            attempt.group,
            "yes" if attempt.group in found.chosen else "",
            str(len(attempt.removed)),
            f"{attempt.drop:.4f}",
            f"{attempt.loss_increase:.4f}",
            f"{attempt.share:.0%}" if attempt.share else "earlier round",
        ]
        for attempt in found.attempts
    ]
    header = ["group", "pruned", "channels tried", "drop of the metric", "rise of the loss", "measured on"]
    return f"<details><summary>{escape(head)}</summary>{_table(header, body, numbers=(2, 3, 4, 5))}</details>"


def _frozen(report: "PruningReport") -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    if not report.frozen:
        return notes
    body = [[layer, str(count), reason] for layer, count, reason in report.frozen]
    return "<h2>What is not pruned, and why</h2>" + _table(["layer", "channels", "reason"], body, numbers=(1,)) + notes


def _chart(rounds: Sequence[Round], macs: float) -> str:
    """Draws the MACs after each round as steps, and the metric before it, if that was measured, as a line."""
    if not rounds or math.isnan(macs) or not macs:
        return ""

    def across(number: float) -> float:
        return _LEFT + number / len(rounds) * (_WIDE - 2 * _LEFT)

    def up(part: float) -> float:
        return _HIGH - _EDGE - part * (_HIGH - 2 * _EDGE)

    costs = [1.0, *(r.macs / macs for r in rounds)]
    corners = [f"H{across(i):.1f}V{up(cost):.1f}" for i, cost in enumerate(costs)]
    drawn = [
        f'<path d="M{across(0):.1f} {up(1):.1f}{"".join(corners)}" fill="none" stroke="var(--now)" stroke-width="2"/>'
    ]
    for part in (0.0, 0.5, 1.0):
        drawn.append(_line(across(0), up(part), across(len(rounds)), up(part)))
        drawn.append(_text(across(0) - 6, up(part) + 4, f"{part:.0%}", "end"))
    for number in _whole(len(rounds)):
        drawn.append(_text(across(number), _HIGH - 8, str(number), "middle"))
    measured = [(i, r.before.metric) for i, r in enumerate(rounds) if r.before and math.isfinite(r.before.metric)]
    if measured:
        low, high = min(m for _, m in measured), max(m for _, m in measured)
        places = [(across(i), up((m - low) / (high - low) if high > low else 0.5)) for i, m in measured]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="var(--metric)" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="var(--metric)"/>' for x, y in places]
        labels = {0.0: low, 1.0: high} if high > low else {0.5: low}
        drawn += [_text(across(len(rounds)) + 6, up(y) + 4, f"{v:.4g}", "start") for y, v in labels.items()]
    keys = [("var(--now)", "MACs after the round, left"), ("var(--metric)", "metric before the round, right")]
    for place, (color, name) in enumerate(keys[: 2 if measured else 1]):
        drawn.append(f'<rect x="{_LEFT + place * 200}" y="6" width="10" height="10" fill="{color}"/>')
        drawn.append(_text(_LEFT + place * 200 + 15, 15, name, "start"))
    title = f"MACs{' and metric' if measured else ''} over the rounds"
    size = f'viewBox="0 0 {_WIDE} {_HIGH}" width="{_WIDE}" role="img" aria-label="{title}"'
    return f"<h2>{title}</h2><svg {size}>{''.join(drawn)}</svg>"


def _whole(count: int) -> Iterable[int]:
    """Returns at most eleven whole numbers from 0 to a count."""
    return range(0, count + 1, max(1, math.ceil(count / 10)))


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="var(--line)"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


class _Html(str):
    """Text that is HTML already."""


def _bar(before: float, now: float) -> str:
    return f'<div class="bar"><i style="width:{before:.1%}"></i><i style="width:{now:.1%}"></i></div>'


def _table(header: Sequence[str], body: Iterable[Sequence[str]], numbers: Sequence[int]) -> str:
    def row(kind: str, cells: Sequence[str]) -> str:
        styles = [' class="number"' if i in numbers else "" for i in range(len(cells))]
        inner = [c if isinstance(c, _Html) else escape(c) for c in cells]
        return "<tr>" + "".join(f"<{kind}{s}>{c}</{kind}>" for s, c in zip(styles, inner, strict=True)) + "</tr>"

    lines = "\n".join(row("td", cells) for cells in body)
    return f'<div class="scroll"><table><thead>{row("th", header)}</thead><tbody>{lines}</tbody></table></div>'


def _figure(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:,.0f}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def share(part: float, whole: float) -> str:
    """Returns a part as a percentage of a whole, which may be unknown."""
    return "unknown" if math.isnan(whole) else f"{part / whole if whole else 1:.1%}"

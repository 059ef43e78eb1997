"""What can be pruned: sums up a channel graph as a table of groups, their costs, and what is frozen and why."""

import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_pcp.graph.channels import IDLE, PRODUCE, ChannelGroup, Extent
from keras_pcp.graph.cost import Cost, cost_of
from keras_pcp.graph.widths import smallest
from keras_pcp.support.text import human_number, shorten, shorten_apart, shorten_middle

if TYPE_CHECKING:
    from keras_pcp.graph.channel_graph import ChannelGraph

COLUMNS = 80
_NAME, _LONGEST = 25, 70  # widths of a name in the table and elsewhere
# How rules name a layer in a reason: its quoted name, then its class.
_LAYER = re.compile(r"""(?:'([^']*)'|"([^"]*)") \((\w+)\)""")


@dataclass(frozen=True)
class GroupSummary:
    """One channel group and what it costs.

    Attributes:
        name: name of the group.
        num_channels: its width, the number of channels.
        least_channels: the least width that it can be pruned to.
        producers: the layers that make these channels together.
        macs: the multiply-accumulates that at least one of its channels takes part in, as output or as input. They would
            disappear if all channels of the group could be removed. An operation between two groups counts in both, so
            the groups of a model add up to more than the model. NaN if the input size is unknown.
        params: the weights that belong to at least one of its channels, counted in the same way.
        exact: True if the pruned model computes exactly what the masked model computes.
    """

    name: str
    num_channels: int
    least_channels: int
    producers: tuple[str, ...]
    macs: float
    params: int
    exact: bool


@dataclass(frozen=True)
class Remark:
    """One reason or note, and all the layers that it applies to.

    Attributes:
        text: the reason, with layers named by their class only.
        layers: names of the layers that it applies to.
        causes: names of the layers that are the cause, if the reason names any.
        num_channels: number of channels that it freezes in `layers`.
    """

    text: str
    layers: tuple[str, ...]
    causes: tuple[str, ...] = ()
    num_channels: int = 0


@dataclass(frozen=True)
class Inspection:
    """What can be pruned in a model and how far, and what cannot and why. `print` it, or call `to_json()`.

    Attributes:
        model_name: name of the model.
        full: cost of the model as it is.
        least: cost with every group at its least width; no limit can be lower.
        groups: the channel groups.
        prunable_channels: number of filters and units in groups; the filters of every producer count.
        total_channels: `prunable_channels` and the frozen ones.
        frozen: what is never pruned, by reason.
        notes: layers without a rule, by class.
        uncounted: layers whose multiply-accumulates are unknown, by reason; those of the model are then unknown, too.
        blocks: names of the layers that were opened to see the layers inside; see `keras_pcp.inline_blocks`.
    """

    model_name: str
    full: Cost
    least: Cost
    groups: tuple[GroupSummary, ...]
    prunable_channels: int
    total_channels: int
    frozen: tuple[Remark, ...] = ()
    notes: tuple[Remark, ...] = ()
    blocks: tuple[str, ...] = ()
    uncounted: tuple[Remark, ...] = ()

    def __str__(self) -> str:
        lines = [f"{shorten_middle(self.model_name, 50)}: {_count(len(self.groups), 'channel group')}"]
        share = _share(self.prunable_channels, self.total_channels)
        lines.append(f"  prunable    {self.prunable_channels:,} of {self.total_channels:,} channels ({share})")
        unknown = (
            f"unknown, since those of {len(self.full.uncounted):,} of {_count(len(self.full.layers), 'layer')} are"
        )
        lines.append(f"  MACs        {unknown if self.uncounted else _extremes(self.full.macs, self.least.macs)}")
        lines.append(f"  parameters  {_extremes(self.full.params, self.least.params)}")
        if self.blocks:
            lines.append(
                f"  opened      {_count(len(self.blocks), 'block')}; keras_pcp.inline_blocks gives the plain model"
            )
        return "\n".join([*lines, *self._table(), *self._frozen_lines(), *self._note_lines()])

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict; unknown MACs are None.

        Keys: "model"; "full" and "least", each {"macs", "params", "bytes"}; "channels": {"prunable", "total"};
        "groups": a list of {"name", "num_channels", "least_channels", "producers", "macs", "params", "exact"};
        "frozen" and "notes": lists of {"text", "layers", "causes", "num_channels"}; "uncounted": the same for
        layers whose MACs are unknown; "idle": number of weights that no call uses; "blocks": names of opened layers.
        """

        def known(value: float) -> float | None:
            return None if math.isnan(value) else value

        def total(cost: Cost) -> dict[str, float | None]:
            return {"macs": known(cost.macs), "params": cost.params, "bytes": cost.bytes}

        def remarks(items: Iterable[Remark]) -> list[dict[str, Any]]:
            return [asdict(r) | {"layers": list(r.layers), "causes": list(r.causes)} for r in items]

        return {
            "model": self.model_name,
            "full": total(self.full),
            "least": total(self.least),
            "channels": {"prunable": self.prunable_channels, "total": self.total_channels},
            "groups": [asdict(g) | {"producers": list(g.producers), "macs": known(g.macs)} for g in self.groups],
            "frozen": remarks(self.frozen),
            "notes": remarks(self.notes),
            "uncounted": remarks(self.uncounted),
            "idle": self.full.layers[IDLE].params if IDLE in self.full.layers else 0,
            "blocks": list(self.blocks),
        }

    def _table(self) -> Iterator[str]:
        if not self.groups:
            return
        wide = min(_NAME, max(5, *(len(g.name) for g in self.groups)))
        yield f"\n{'group':<{wide}}  width  layers  {'MACs':>14}  {'parameters':>14}  exact"
        names = shorten_apart([g.name for g in self.groups], wide)
        for g, name in zip(self.groups, names, strict=True):
            macs, params = _part(g.macs, self.full.macs), _part(g.params, self.full.params)
            yield (
                f"{name:<{wide}}  {g.num_channels:>5}  {len(g.producers):>6}  "
                f"{macs}  {params}  {'yes' if g.exact else 'no'}"
            )
        yield from _wrap(
            "layers: number of layers that share these channels. MACs and parameters: everything that the "
            "group's channels take part in; what connects two groups counts in both."
        )
        if not all(g.exact for g in self.groups):
            yield from _wrap("exact no: a layer takes statistics over the channels, so they change when channels go.")

    def _frozen_lines(self) -> Iterator[str]:
        if not self.frozen:
            return
        layers = {name for r in self.frozen for name in r.layers}
        yield f"\nfrozen: {_amount(self.total_channels - self.prunable_channels, len(layers))}"
        for r in self.frozen:
            yield from _wrap(f"{_amount(r.num_channels, len(r.layers))}: {_shown_text(r.text)}", 2)
            yield from _wrap(_examples(r.layers), 4)
            if r.causes:
                yield from _wrap(f"because of {_examples(r.causes)}", 4)

    def _note_lines(self) -> Iterator[str]:
        if self.notes or self.full.notes():
            yield "\nnotes"
        for r in self.notes:
            count = f"{_count(len(r.layers), 'layer')}: " if r.layers else ""
            yield from _wrap(f"{count}{_shown_text(r.text)}", 2)
            yield from _wrap(_examples(r.layers), 4)
        for r in self.uncounted:
            yield from _wrap(f"{_count(len(r.layers), 'layer')} with unknown MACs: {_shown_text(r.text)}", 2)
            yield from _wrap(_examples(r.layers), 4)
        for note in self.full.notes()[len(self.full.uncounted) :]:
            yield from _wrap(note, 2)


def summarize(graph: "ChannelGraph") -> Inspection:
    """Sums up a channel graph; see `keras_pcp.inspect_graph`."""
    floor, full = smallest(graph), cost_of(graph)
    macs, params = dict.fromkeys(graph.groups, 0.0), dict.fromkeys(graph.groups, 0)
    for term in graph.macs:
        for name, amount in _taking_part(term.extents):
            macs[name] += term.factor * amount
    for info in graph.weights:
        for name, amount in _taking_part(info.shape):
            params[name] += amount
    groups = tuple(
        GroupSummary(
            g.name,
            g.num_channels,
            int(np.count_nonzero(floor.keep[g.name])),
            g.producers,
            macs[g.name],
            params[g.name],
            g.exact,
        )
        for g in graph
    )
    prunable = sum(_channels_made(group) for group in graph)
    return Inspection(
        model_name=graph.model_name,
        full=full,
        least=cost_of(graph, floor),
        groups=groups,
        prunable_channels=prunable,
        total_channels=prunable + sum(f.num_channels for f in graph.frozen),
        frozen=_merge((f.reason, f.layer, f.num_channels) for f in graph.frozen),
        notes=_merge((note, None, 0) for note in graph.notes),
        blocks=graph.blocks,
        uncounted=tuple(replace(r, causes=()) for r in _merge((why, name, 0) for name, why in full.uncounted.items())),
    )


def _taking_part(extents: tuple[Extent, ...]) -> Iterator[tuple[str, int]]:
    """Yields (group, elements of the product that a channel of the group takes part in)."""
    counts = [{name: len(channels) for name, channels in extent.pieces} for extent in extents]
    everything = math.prod(extent.size for extent in extents)
    for name in dict.fromkeys(name for count in counts for name in count):
        rest = math.prod(e.size - count.get(name, 0) for e, count in zip(extents, counts, strict=True))
        yield name, everything - rest


def _channels_made(group: ChannelGroup) -> int:
    """Filters and units in a group: the largest slice of every producer, since kernels and biases list the same."""
    made: dict[str, int] = {}
    for s in group.slices_of(PRODUCE):
        made[s.layer] = max(made.get(s.layer, 0), len(s.positions))
    return sum(made.values())


def _merge(reasons: Iterable[tuple[str, str | None, int]]) -> tuple[Remark, ...]:
    """Merges (text, layer, channels) whose texts differ only in layer names; layer None means those named in the text."""
    found: dict[str, tuple[dict, dict, list[int]]] = {}
    for text, layer, count in reasons:
        named = [a or b for a, b, _ in _LAYER.findall(text)]
        layers, causes, counts = found.setdefault(_LAYER.sub(r"\3", text), ({}, {}, []))
        layers.update(dict.fromkeys(named if layer is None else [layer]))
        causes.update(dict.fromkeys([] if layer is None else named))
        counts.append(count)
    merged = (Remark(text, tuple(a), tuple(b), sum(counts)) for text, (a, b, counts) in found.items())
    return tuple(sorted(merged, key=lambda r: -r.num_channels))


def _wrap(text: str, indent: int = 0) -> list[str]:
    first, others = " " * indent, " " * (indent + 2 if indent else 0)
    return textwrap.wrap(text, COLUMNS, break_on_hyphens=False, initial_indent=first, subsequent_indent=others)


def _shown_text(text: str) -> str:
    return " ".join(shorten_middle(word, _LONGEST) for word in text.split())


def _examples(names: Iterable[str]) -> str:
    return shorten(shorten_middle(name, _LONGEST) for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _amount(channels: int, layers: int) -> str:
    return f"{_count(channels, 'channel')} of {_count(layers, 'layer')}"


def _share(part: float, whole: float) -> str:
    if math.isnan(part) or not whole > 0:
        return ""
    return "<0.1%" if 0 < part / whole < 0.0005 else f"{part / whole:.1%}"


def _part(part: float, whole: float) -> str:
    return f"{human_number(part):>7} {_share(part, whole):>6}"


def _extremes(full: float, least: float) -> str:
    share = _share(least, full)
    return f"{human_number(full)}, least reachable {human_number(least)}" + (f" ({share})" if share else "")

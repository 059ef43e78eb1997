"""The channel graph: which channels of a model are coupled, and which selections fit it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.channels import ChannelGroup, CostTerm, Frozen, WeightInfo, Width
from keras_pcp.graph.selection import Selection, checked_selection
from keras_pcp.graph.summary import Inspection, summarize
from keras_pcp.support import checks
from keras_pcp.support.text import shorten


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Which channels of a model are coupled, which are frozen and why, and what everything costs.

    `keras_pcp.build_graph` returns it. Iterate over it to get the groups; `graph["name"]` returns one group, and
    `print(graph)` shows the report of `keras_pcp.graph.summary`.

    Attributes:
        model_name: name of the model.
        groups: {name: group}, in the order of execution.
        frozen: what is never pruned, and why.
        weights: facts about each weight, in the order of `model.weights`.
        widths: every number outside the weights that follows a selection.
        macs: the terms whose sum gives the multiply-accumulates.
        notes: remarks for the report.
        blocks: names of the layers that were opened to see the layers inside. A model with blocks is pruned as
            `inline_blocks(model)`.
        fingerprint: digest of the model's calls, apart from widths. A graph fits models with the same fingerprint.
    """

    model_name: str
    groups: Mapping[str, ChannelGroup]
    frozen: tuple[Frozen, ...]
    weights: tuple[WeightInfo, ...]
    widths: tuple[Width, ...]
    macs: tuple[CostTerm, ...]
    notes: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    fingerprint: str = ""

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        if not isinstance(name, str) or name not in self.groups:
            raise InvalidArgumentError(f"no channel group named {name!r}; groups: {shorten(self.groups)}")
        return self.groups[name]

    def __str__(self) -> str:
        return str(summarize(self))


def check_graph(graph: ChannelGraph) -> None:
    """Raises InvalidArgumentError unless it is a channel graph."""
    checks.instance("graph", graph, ChannelGraph, "a ChannelGraph", "pass keras_pcp.build_graph(model)")


def check_selection(graph: ChannelGraph, selection: Selection) -> None:
    """Raises InvalidArgumentError unless `selection` fits `graph` and leaves at least 1 channel in every group and width."""
    check_graph(graph)
    checked_selection("selection", selection)
    for name, mask in selection.keep.items():
        group = graph[name]
        if len(mask) != group.num_channels:
            raise InvalidArgumentError(
                f"selection of group {name!r} has {len(mask)} entries, the group has {group.num_channels} channels"
            )
        if not mask.any():
            raise InvalidArgumentError(f"selection would remove all {len(mask)} channels of group {name!r}; keep one")
    for width in graph.widths:
        # A slice may start at 0 afterwards. Only tensors must not become empty.
        if width.owner == "tensor" and width.extent.after(selection.keep) < 1:
            groups = shorten([name for name, _ in width.extent.pieces])
            raise InvalidArgumentError(
                f"selection would leave an axis of width 0 that is fed by group(s) {groups}; keep a channel there"
            )


def inspect_graph(graph: ChannelGraph) -> Inspection:
    """Sums up what can be pruned and how far, and what is frozen and why. `print(graph)` prints the same.

    Args:
        graph: channel graph.

    Returns:
        An `Inspection`. Print it, or call its `to_json()`.

    Example:
        >>> import keras, keras_pcp
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 1, use_bias=False, name="conv")(x)
        >>> y = keras.layers.Dense(10, use_bias=False, name="logits")(keras.layers.GlobalAveragePooling2D()(y))
        >>> inspection = keras_pcp.inspect_graph(keras_pcp.build_graph(keras.Model(x, y, name="tiny")))
        >>> inspection.full.macs, inspection.least.macs         # 8*8 * 3*16 + 16*10, 8*8 * 3*1 + 1*10
        (3232.0, 202.0)
        >>> print(inspection)
        tiny: 1 channel group
          prunable    16 of 26 channels (61.5%)
          MACs        3.2 k, least reachable 202 (6.2%)
          parameters  208, least reachable 13 (6.2%)
        <BLANKLINE>
        group  width  layers            MACs      parameters  exact
        conv      16       1    3.2 k 100.0%      208 100.0%  yes
        layers: number of layers that share these channels. MACs and parameters:
        everything that the group's channels take part in; what connects two groups
        counts in both.
        <BLANKLINE>
        frozen: 10 channels of 1 layer
          10 channels of 1 layer: output of the model
            logits
    """
    check_graph(graph)
    return summarize(graph)

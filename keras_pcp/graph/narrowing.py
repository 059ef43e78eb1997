"""The channel graph of a pruned model, made from the graph of the unpruned one by renumbering, without analysis.

Analysing a pruned model again could give other groups, because an axis with one channel broadcasts, for example. A run that
prunes in many steps keeps the groups that it started with.
"""

from dataclasses import replace

import numpy as np

from keras_pcp.graph.channel_graph import ChannelGraph, check_selection
from keras_pcp.graph.channels import ChannelGroup, Extent, WeightSlice, Width
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.weight_masks import Masks, weight_masks


def narrowed(graph: ChannelGraph, selection: Selection) -> ChannelGraph:
    """Returns the graph of the model after pruning by `selection`, with the same groups, but narrower.

    Args:
        graph: graph of the unpruned model.
        selection: channels to keep.

    Raises:
        InvalidArgumentError: the selection does not fit.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3, name="hidden")(x)))
        >>> graph = keras_pcp.build_graph(model)
        >>> small = narrowed(graph, keras_pcp.Selection({"hidden": np.array([True, False, True])}))
        >>> small["hidden"].num_channels, [extent.size for extent in small.weights[0].shape]
        (2, [4, 2])
    """
    check_selection(graph, selection)
    if not selection.removed():
        return graph
    masks = weight_masks(graph, selection)

    def extent(old: Extent) -> Extent:
        pieces = ((name, _renumbered(channels, selection.keep.get(name))) for name, channels in old.pieces)
        return Extent(old.after(selection.keep), tuple((name, left) for name, left in pieces if len(left)))

    return replace(
        graph,
        groups={name: _narrowed_group(group, selection.keep.get(name), masks) for name, group in graph.groups.items()},
        weights=tuple(replace(w, shape=tuple(map(extent, w.shape))) for w in graph.weights),
        widths=tuple(
            replace(w, extent=extent(w.extent), positions=_positions_left(w, selection)) for w in graph.widths
        ),
        macs=tuple(replace(term, extents=tuple(map(extent, term.extents))) for term in graph.macs),
    )


def _positions_left(width: Width, selection: Selection) -> tuple[np.ndarray, ...]:
    """Returns the new positions of the channels of each piece of which some are left."""
    if not width.positions:
        return ()
    stays, left = np.ones(width.extent.size, bool), []
    for (name, channels), positions in zip(width.extent.pieces, width.positions, strict=True):
        left.append(positions[selection.keep[name][channels]] if name in selection.keep else positions)
        stays[positions] = np.isin(positions, left[-1])
    return tuple(_renumbered(positions, stays) for positions in left if len(positions))


def _narrowed_group(group: ChannelGroup, keep: np.ndarray | None, masks: Masks) -> ChannelGroup:
    def narrow(s: WeightSlice) -> WeightSlice:
        stays = slice(None) if keep is None else keep[s.channels]
        channels = _renumbered(s.channels, keep)
        return replace(
            s, channels=channels, positions=_renumbered(s.positions[stays], masks.get(s.weight, {}).get(s.axis))
        )

    return replace(
        group,
        num_channels=group.num_channels if keep is None else int(keep.sum()),
        slices=tuple(s for s in map(narrow, group.slices) if len(s.channels)),
    )


def _renumbered(numbers: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    """Returns the new numbers of those that are kept; all are, if `keep` is None."""
    return numbers if keep is None else (np.cumsum(keep) - 1)[numbers[keep[numbers]]]

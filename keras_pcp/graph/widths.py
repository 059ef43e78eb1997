"""The least widths that options allow, and the order in which channels are removed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.graph.selection import Selection
from keras_pcp.support import checks

if TYPE_CHECKING:
    from keras_pcp.graph.channel_graph import ChannelGraph


def smallest(
    graph: "ChannelGraph", min_channels: int | Mapping[str, int] = 1, multiple_of: int | Mapping[str, int] = 1
) -> Selection:
    """Returns the selection that gives every group its least allowed width."""
    keep = {}
    for group in graph:
        removed = group.num_channels - least_width(group, min_channels, multiple_of)
        keep[group.name] = lowest_removed(np.zeros(group.num_channels), removed)
    return Selection(keep)


def least_width(
    group: ChannelGroup, min_channels: int | Mapping[str, int], multiple_of: int | Mapping[str, int]
) -> int:
    """Returns the least allowed width of a group: `min_channels` rounded up to `multiple_of`, at most its own width."""
    least, multiple = width_option(min_channels, group.name), width_option(multiple_of, group.name)
    return min(group.num_channels, -(-least // multiple) * multiple)


def width_option(option: int | Mapping[str, int], name: str) -> int:
    """Returns an option's value for a group: a number holds for all groups; in {group name: number}, others have 1."""
    return int(option.get(name, 1) if isinstance(option, Mapping) else option)


def removal_order(scores: np.ndarray) -> np.ndarray:
    """Returns channel numbers in the order of removal: lowest score first, ties by number.

    Channels with score -inf, which are removed already, are left out.
    """
    order = np.argsort(scores, kind="stable")
    return order[scores[order] > -np.inf]


def lowest_removed(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns a keep mask without the `count` lowest channels: those with score -inf, then by `removal_order`."""
    mask = scores > -np.inf
    mask[removal_order(scores)[: max(0, count - np.count_nonzero(~mask))]] = False
    return mask


def check_widths(
    min_channels: int | Mapping[str, int], multiple_of: int | Mapping[str, int], graph: "ChannelGraph | None" = None
) -> None:
    """Raises InvalidArgumentError unless both are positive ints, or {name of a group of the graph: positive int}."""
    for name, option in (("min_channels", min_channels), ("multiple_of", multiple_of)):
        for value in option.values() if isinstance(option, Mapping) else [option]:
            checks.count(name, value)
        if isinstance(option, Mapping) and graph is not None and (unknown := set(option) - set(graph.groups)):
            raise InvalidArgumentError(
                f"{name} names {sorted(map(str, unknown))}, which are not groups; the groups are {list(graph.groups)}"
            )

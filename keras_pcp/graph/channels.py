"""The frozen dataclasses that a channel graph is made of: groups, weight slices, widths, cost terms.

Nothing here depends on Keras. An index in `model.weights` names a weight. The position in the lists of
`keras_pcp.graph.trace` names an operation or a tensor. So a graph is valid for any model of the same structure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import checks

PRODUCE, FOLLOW, CONSUME = "produce", "follow", "consume"
# Takes the place of the layer name for weights that no call uses, such as those of a teacher that the model holds.
IDLE = "(used by no call)"


@dataclass(frozen=True, eq=False)
class WeightSlice:
    """Which positions along one axis of one weight belong to which channels of a group.

    Attributes:
        weight: index in `model.weights`.
        path: the weight's path, for messages.
        layer: name of the layer that owns the weight.
        axis: axis of the weight.
        role: `"produce"` (makes the channel), `"follow"` (one value per channel) or `"consume"` (reads the channel).
        part: what the weight is: `"kernel"`, `"bias"`, `"scale"`, `"offset"`, ...
        channels: int array (n,), channel numbers in the group.
        positions: int array (n,), positions along the axis.
    """

    weight: int
    path: str
    layer: str
    axis: int
    role: str
    part: str
    channels: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that several layers share: channel c stays in all of them or is removed from all of them.

    Attributes:
        name: name of the first layer that produces the channels.
        num_channels: number of channels.
        slices: every weight axis that belongs to the group.
        exact: True if the pruned model computes exactly what the masked model computes.
    """

    name: str
    num_channels: int
    slices: tuple[WeightSlice, ...]
    exact: bool = True

    def slices_of(self, role: str, part: str | None = None) -> tuple[WeightSlice, ...]:
        """Returns the slices with a role, and with a part if one is given."""
        return tuple(s for s in self.slices if s.role == role and part in (None, s.part))

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the layers that make the channels."""
        return tuple(dict.fromkeys(s.layer for s in self.slices_of(PRODUCE)))


@dataclass(frozen=True, eq=False)
class Extent:
    """A number that falls when channels are removed: `size` minus one for every removed channel in `pieces`.

    Attributes:
        size: the number before pruning.
        pieces: pairs (group name, int array of channel numbers); a channel counts as often as it is listed.
    """

    size: int
    pieces: tuple[tuple[str, np.ndarray], ...] = ()

    def after(self, keep: Mapping[str, np.ndarray]) -> int:
        """Returns the number after a selection."""
        removed = sum(np.count_nonzero(~keep[name][channels]) for name, channels in self.pieces if name in keep)
        return self.size - int(removed)


@dataclass(frozen=True, eq=False)
class Width:
    """An integer outside the weights that has to follow a selection, such as `filters` or a tensor's shape.

    Attributes:
        owner: `"operation"`, `"argument"` (of a call) or `"tensor"`.
        index: index of the operation, call or tensor in the trace.
        path: the place of the number in the owner: attribute names and sequence indices.
        extent: the number itself.
        positions: of a tensor, int arrays: where the channels of each piece of the extent lie along the axis.
    """

    owner: str
    index: int
    path: tuple[Any, ...]
    extent: Extent
    positions: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class CostTerm:
    """The multiply-accumulates of one operation on one sample: `factor` times the product of some extents.

    If `factor` is unknown it is NaN, and `why` gives the reason.
    """

    layer: str
    factor: float
    extents: tuple[Extent, ...]
    why: str = ""


@dataclass(frozen=True, eq=False)
class WeightInfo:
    """A weight's path, owning layer, bytes per element, and shape as extents.

    The layer is empty if the weight does not count, because the plain model or the delivered part does not have it. It is
    `IDLE` if the weight belongs to the model but no call uses it.
    """

    path: str
    layer: str
    itemsize: int
    shape: tuple[Extent, ...]


@dataclass(frozen=True)
class Frozen:
    """Output channels of a layer that are never pruned, and why."""

    layer: str
    num_channels: int
    reason: str


def check_scores(group: ChannelGroup, given: Any, what: str) -> np.ndarray:
    """Returns the scores of a group as a float array (num_channels,); raises InvalidArgumentError if they are invalid."""
    try:
        array = np.asarray(given)
        scores = array.astype(float) if array.dtype.kind in "biufV" else None
    except Exception:  # ragged, or of a class that is not an array
        scores = None
    if scores is None or scores.shape != (group.num_channels,) or not np.isfinite(scores).all():
        bad = scores is not None and scores.shape == (group.num_channels,)
        raise InvalidArgumentError(
            f"{what} must be {group.num_channels} finite numbers for group {group.name!r}, got {checks.shown(given)}"
            + (" with NaN or infinite values" if bad else "")
        )
    return scores

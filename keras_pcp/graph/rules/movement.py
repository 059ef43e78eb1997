"""Rules for operations that move values without changing them: reshapes, transposes, padding, repetition."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_pcp.graph.labels import Labels
from keras_pcp.graph.rules import CallSite, Outputs, Shape, register_operation, register_rule

L = keras.layers


@register_rule(L.Flatten)
def flatten(site: CallSite) -> Outputs:
    """Repeats every channel for each position."""
    return reshaped(site, (2, -1), None)


@register_rule(L.Reshape)
def reshape(site: CallSite) -> Outputs:
    """Moves channels to the place where NumPy's reshape puts their labels."""
    return reshaped(site, (2, *site.operation.target_shape), ("target_shape", 1))


@register_operation("Reshape")
def raw_reshape(site: CallSite) -> Outputs:
    """The same for `keras.ops.reshape`, whose target is an argument."""
    target = site.operation.newshape
    target = tuple(target) if isinstance(target, Sequence) else (target,)
    if site.inputs[0] is not None and not all(isinstance(d, int) for d in target):
        site.freeze(site.inputs[0], f"has the target shape {target}, which is not made of integers")
        return None
    return reshaped(site, target, ("newshape", 0))


def reshaped(site: CallSite, target: tuple, width: tuple[str, int] | None) -> Outputs:
    """Reshapes an array of labels to see where the channels go.

    Unknown sizes get stand-ins (batch 2, others 3), and labels must not vary along them afterwards. `width` gives the
    attribute that holds the target shape, and the axis at which that shape starts.
    """
    labels, in_shape, out_shape = site.inputs[0], site.input_shapes[0], site.output_shapes[0]
    if labels is None:
        return None
    out = _moved(labels, in_shape, out_shape, target)
    if out is None:
        site.freeze(labels, f"reshapes {in_shape} to {out_shape}, where they do not lie on an axis of known size")
        return None
    axes = [a for a in range(out.ndim) if out.shape[a] > 1 and (out != out.take([0], a)).any()]
    last = axes[-1] if axes else out.ndim - 1
    for axis in axes[:-1]:
        first = out.take([0], axis)
        for i in range(1, out.shape[axis]):
            site.tie(first.ravel(), out.take([i], axis).ravel())
        out = first
    ids = out[tuple(slice(None) if a == last else 0 for a in range(out.ndim))]
    if width is not None and target[last] != -1:
        site.width((width[0], last - width[1]), ids)
    return Labels(last, ids)


def _moved(labels: Labels, in_shape: Shape, out_shape: Shape, target: tuple) -> np.ndarray | None:
    sizes = [2 if a == 0 else 3 if d is None else d for a, d in enumerate(in_shape)]
    along = labels.ids.reshape([-1 if a == labels.axis else 1 for a in range(len(sizes))])
    if target and target[0] == in_shape[0] and in_shape[0] is not None:
        sizes[0] = in_shape[0]
    try:
        out = np.broadcast_to(along, sizes).reshape(target)
    except ValueError:
        return None
    unknown = [a for a in range(out.ndim) if a == 0 or out_shape[a] is None]
    return None if any((out != out.take([0], a)).any() for a in unknown) else out


@register_rule(L.Permute)
def permute(site: CallSite) -> Outputs:
    """Moves the channel axis."""
    return _transposed(site, (0, *site.operation.dims))


@register_operation("Transpose")
def transpose(site: CallSite) -> Outputs:
    """Moves the channel axis."""
    rank = len(site.input_shapes[0])
    return _transposed(site, site.operation.axes or tuple(reversed(range(rank))))


def _transposed(site: CallSite, axes: Sequence[int]) -> Outputs:
    labels = site.inputs[0]
    if labels is None:
        return None
    rank = len(axes)
    return Labels([a % rank for a in axes].index(labels.axis), labels.ids)


@register_operation("Swapaxes")
def swapaxes(site: CallSite) -> Outputs:
    """Moves the channel axis."""
    axes = list(range(len(site.input_shapes[0])))
    a, b = site.operation.axis1, site.operation.axis2
    axes[a], axes[b] = axes[b], axes[a]
    return _transposed(site, axes)


@register_operation("Moveaxis")
def moveaxis(site: CallSite) -> Outputs:
    """Moves the channel axis."""
    rank = len(site.input_shapes[0])
    ranks = np.empty(tuple(range(2, 2 + rank)))
    moved = np.moveaxis(ranks, site.operation.source, site.operation.destination)
    return _transposed(site, [size - 2 for size in moved.shape])


@register_operation("ExpandDims")
def expand_dims(site: CallSite) -> Outputs:
    """Shifts the channel axis if the new axis comes before it."""
    labels, rank = site.inputs[0], len(site.output_shapes[0])
    if labels is None:
        return None
    new = sorted(a % rank for a in np.atleast_1d(site.operation.axis))
    kept = [a for a in range(rank) if a not in new]
    return Labels(kept[labels.axis], labels.ids)


@register_operation("Squeeze")
def squeeze(site: CallSite) -> Outputs:
    """Shifts the channel axis if an axis before it goes."""
    labels, shape, axis = site.inputs[0], site.input_shapes[0], site.operation.axis
    if labels is None:
        return None
    gone = [a for a, d in enumerate(shape) if d == 1] if axis is None else [a % len(shape) for a in np.atleast_1d(axis)]
    if labels.axis in gone:
        site.freeze(labels, "drops their axis")
        return None
    return Labels(labels.axis - sum(a < labels.axis for a in gone), labels.ids)


@register_rule(L.RepeatVector)
def repeat_vector(site: CallSite) -> Outputs:
    """Puts an axis before the channels."""
    labels = site.inputs[0]
    return None if labels is None else Labels(labels.axis + 1, labels.ids)


@register_operation("Pad")
def pad(site: CallSite) -> Outputs:
    """Passes channels on. Constant padding of their axis adds channels of its own; other padding freezes them.

    An added channel goes with those that it is added to, as in the shortcuts of the first residual networks. If there are
    none, it stays. With one amount for all axes, the added channels stay, too.
    """
    labels, operation = site.inputs[0], site.operation
    if labels is None:
        return None
    widths = tuple(operation.pad_width)
    alone = len(widths) > 1
    amounts = widths[labels.axis] if alone else widths[0]
    if any(amounts) and operation.mode != "constant":
        site.freeze(labels, f"pads their axis with mode {operation.mode!r}")
        return None
    before, after = (site.constants(amount) if alone else np.zeros(amount, np.int64) for amount in amounts)
    for side, ids in enumerate((before, after)):
        if alone and len(ids):
            site.width(("pad_width", labels.axis, side), ids)
    return Labels(labels.axis, np.concatenate([before, labels.ids, after]))


@register_operation("Flip", "Fliplr", "Flipud")
def flip(site: CallSite) -> Outputs:
    """Reverses the order of the channels if it flips their axis."""
    labels, axis = site.inputs[0], {"Fliplr": 1, "Flipud": 0}.get(type(site.operation).__name__)
    axis = getattr(site.operation, "axis", None) if axis is None else axis
    if labels is None or (axis is not None and labels.axis not in site.axes(axis)):
        return labels
    return Labels(labels.axis, labels.ids[::-1])


@register_operation("Repeat")
def repeat(site: CallSite) -> Outputs:
    """Repeats every channel where it stands if it is their axis."""
    labels, axis, repeats = site.inputs[0], site.operation.axis, np.asarray(site.operation.repeats)
    if labels is None or (axis is not None and labels.axis not in site.axes(axis)):
        return labels
    if axis is None or repeats.size > 1:
        site.freeze(labels, "repeats them unequally or together with the batch axis")
        return None
    return Labels(labels.axis, np.repeat(labels.ids, repeats.item()))


@register_operation("Tile")
def tile(site: CallSite) -> Outputs:
    """Repeats all channels one after the other if it is their axis."""
    labels, repeats, rank = site.inputs[0], np.atleast_1d(site.operation.repeats), len(site.output_shapes[0])
    if labels is None:
        return None
    axis = labels.axis + rank - len(site.input_shapes[0])
    repeats = [1] * (rank - len(repeats)) + repeats.tolist()
    return Labels(axis, np.tile(labels.ids, repeats[axis]))


@register_operation("BroadcastTo")
def broadcast_to(site: CallSite) -> Outputs:
    """Passes channels on; their own axis keeps its extent."""
    labels, rank = site.inputs[0], len(site.output_shapes[0])
    if labels is None:
        return None
    axis = labels.axis + rank - len(site.input_shapes[0])
    if site.output_shapes[0][axis] != len(labels):
        site.freeze(labels, "broadcasts this single channel")
        return None
    site.width(("shape", axis), labels.ids)
    return Labels(axis, labels.ids)


@register_operation("DepthToSpace")
def depth_to_space(site: CallSite) -> Outputs:
    """Ties the channels that become positions of one new channel."""
    ids = site.channels_last(site.inputs[0])
    return None if ids is None else Labels(3, site.tie_runs(ids, site.operation.block_size**2))


@register_operation("SpaceToDepth", "ExtractPatches")
def space_to_depth(site: CallSite) -> Outputs:
    """Moves positions to the channel axis."""
    ids = site.channels_last(site.inputs[0])
    if ids is None:
        return None
    size = site.output_shapes[0][-1]
    assert size is not None  # the number of its channels is known, because that of the input is
    return Labels(len(site.output_shapes[0]) - 1, np.tile(ids, size // len(ids)))

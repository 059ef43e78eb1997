"""Rules of what moves values without changing them, and of pooling and other work along the spatial axes."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_pcp.labels import Labels
from keras_pcp.rules import CallSite, Outputs, Shape, register_operation, register_rule

L = keras.layers


def _layers(*names: str) -> list[type]:
    return [getattr(L, n) for n in names if hasattr(L, n)]


@register_rule(*_layers(
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
    "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D", "AdaptiveAveragePooling1D",
    "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
    "Cropping1D", "Cropping2D", "Cropping3D", "UpSampling1D", "UpSampling2D", "UpSampling3D", "Resizing", "CenterCrop",
    "RandomCrop", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom",
))  # fmt: skip
@register_operation("MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool", "Resize")
def spatial(site: CallSite) -> Outputs:
    """Works on the axes between batch and channels, on each channel alone."""
    labels = site.inputs[0]
    if getattr(site.operation, "data_format", None) == "channels_first" and labels is not None:
        site.freeze(labels, "uses channels_first")
        return None
    ids = site.channels(labels)
    return None if ids is None else Labels(len(site.output_shapes[0]) - 1, ids)


@register_rule(*_layers(
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GlobalMaxPooling3D",
))  # fmt: skip
def global_pooling(site: CallSite) -> Outputs:
    return spatial(site)


@register_operation("Mean", "Sum", "Max", "Min", "Amax", "Amin", "Prod", "Var", "Std", "Logsumexp", "All", "Any")
def reduce(site: CallSite) -> Outputs:
    labels, operation = site.inputs[0], site.operation
    if labels is None:
        return None
    rank, axis = len(site.input_shapes[0]), operation.axis
    axes = set(range(rank)) if axis is None else {a % rank for a in np.atleast_1d(axis)}
    if labels.axis in axes:
        site.freeze(labels, "reduces over them")
        return None
    gone = 0 if operation.keepdims else sum(a < labels.axis for a in axes)
    return Labels(labels.axis - gone, labels.ids)


@register_rule(L.Concatenate)
@register_operation("Concatenate")
def concatenate(site: CallSite) -> Outputs:
    axis = site.operation.axis % len(site.output_shapes[0])
    if any(x is not None and x.axis == axis for x in site.inputs):
        parts = []
        for labels, shape in zip(site.inputs, site.input_shapes, strict=True):
            if labels is not None and labels.axis != axis:
                site.freeze(labels, "joins other channels along another axis")
                labels = None
            parts.append(np.zeros(shape[axis], np.int64) if labels is None else labels.ids)
        return Labels(axis, np.concatenate(parts))
    known = [x for x in site.inputs if x is not None]
    if len(known) < len(site.inputs) or len({x.axis for x in known}) > 1:
        for labels in known:
            site.freeze(labels, "joins them with a tensor whose channels are fixed")
        return None
    for labels in known[1:]:
        site.tie(known[0].ids, labels.ids)
    return known[0]


@register_rule(L.Flatten)
def flatten(site: CallSite) -> Outputs:
    return reshaped(site, (2, -1), None)


@register_rule(L.Reshape)
def reshape(site: CallSite) -> Outputs:
    return reshaped(site, (2, *site.operation.target_shape), ("target_shape", 1))


@register_operation("Reshape")
def raw_reshape(site: CallSite) -> Outputs:
    target = site.operation.newshape
    target = tuple(target) if isinstance(target, Sequence) else (target,)
    if site.inputs[0] is not None and not all(isinstance(d, int) for d in target):
        site.freeze(site.inputs[0], f"has the target shape {target}, which is not made of integers")
        return None
    return reshaped(site, target, ("newshape", 0))


@register_operation("Ravel")
def ravel(site: CallSite) -> Outputs:
    site.freeze(site.inputs[0], "mixes them with the batch axis")
    return None


def reshaped(site: CallSite, target: tuple, width: tuple[str, int] | None) -> Outputs:
    """Reshapes an array of labels and reads off where the channels went.

    Unknown sizes get stand-ins (batch 2, others 3), and labels must not vary along them afterwards. `width` names the
    attribute that holds the target shape and the axis at which it starts.
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
    return _transposed(site, (0, *site.operation.dims))


@register_operation("Transpose")
def transpose(site: CallSite) -> Outputs:
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
    axes = list(range(len(site.input_shapes[0])))
    a, b = site.operation.axis1, site.operation.axis2
    axes[a], axes[b] = axes[b], axes[a]
    return _transposed(site, axes)


@register_operation("Moveaxis")
def moveaxis(site: CallSite) -> Outputs:
    rank = len(site.input_shapes[0])
    ranks = np.empty(tuple(range(2, 2 + rank)))
    moved = np.moveaxis(ranks, site.operation.source, site.operation.destination)
    return _transposed(site, [size - 2 for size in moved.shape])


@register_operation("ExpandDims")
def expand_dims(site: CallSite) -> Outputs:
    labels, rank = site.inputs[0], len(site.output_shapes[0])
    if labels is None:
        return None
    new = sorted(a % rank for a in np.atleast_1d(site.operation.axis))
    kept = [a for a in range(rank) if a not in new]
    return Labels(kept[labels.axis], labels.ids)


@register_operation("Squeeze")
def squeeze(site: CallSite) -> Outputs:
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
    labels = site.inputs[0]
    return None if labels is None else Labels(labels.axis + 1, labels.ids)


@register_operation("Pad")
def pad(site: CallSite) -> Outputs:
    labels, operation = site.inputs[0], site.operation
    if labels is None:
        return None
    widths = tuple(operation.pad_width)
    before, after = widths[labels.axis] if len(widths) > 1 else widths[0]
    if (before or after) and operation.mode != "constant":
        site.freeze(labels, f"pads their axis with mode {operation.mode!r}")
        return None
    zeros = (np.zeros(before, np.int64), np.zeros(after, np.int64))
    return Labels(labels.axis, np.concatenate([zeros[0], labels.ids, zeros[1]]))


@register_operation("GetItem")
def get_item(site: CallSite) -> Outputs:
    """`x[key]` with integers, slices, None and Ellipsis; the channels' own slice is rewritten with them."""
    labels, shape = site.inputs[0], site.input_shapes[0]
    if labels is None:
        return None
    in_args = len(site.args) > 1
    key = site.args[1] if in_args else site.kwargs["key"]
    path = ("args", 1) if in_args else ("kwargs", "key")
    items = list(key) if isinstance(key, tuple | list) else [key]
    if any(not (i is None or i is Ellipsis or isinstance(i, int | slice)) for i in items):
        site.freeze(labels, "is indexed with something else than integers and slices")
        return None
    if Ellipsis not in items:
        items.append(Ellipsis)
    missing = len(shape) - sum(i is not None and i is not Ellipsis for i in items)
    in_axis = out_axis = 0
    for position, item in enumerate(items):
        if item is Ellipsis:
            if in_axis <= labels.axis < in_axis + missing:
                return Labels(out_axis + labels.axis - in_axis, labels.ids)
            in_axis, out_axis = in_axis + missing, out_axis + missing
        elif item is None:
            out_axis += 1
        elif in_axis != labels.axis:
            in_axis, out_axis = in_axis + 1, out_axis + isinstance(item, slice)
        else:
            path = (*path, position) if isinstance(key, tuple | list) else path
            ids = _sliced(site, labels, item, path)
            return None if ids is None else Labels(out_axis, ids)
    return None


def _sliced(site: CallSite, labels: Labels, item: slice | int, path: tuple) -> np.ndarray | None:
    if item == slice(None):
        return labels.ids
    ends = [e for e in (item.start, item.stop) if e is not None] if isinstance(item, slice) else [-1]
    if any(not isinstance(e, int) or e < 0 for e in ends) or item.step not in (None, 1):
        site.freeze(labels, f"takes {item} of them; only slices with start and stop from 0 up are followed")
        return None
    for name in ("start", "stop"):
        end = getattr(item, name)
        if end is not None:
            end = min(end, len(labels))
            site.width((*path, name), labels.ids[:end], owner="argument")
    return site.keep_some(labels.ids[item], 1)


@register_operation("Slice")
def slice_(site: CallSite) -> Outputs:
    labels = site.inputs[0]
    if labels is None:
        return None
    in_args = len(site.args) > 1
    starts = site.args[1] if in_args else site.kwargs["start_indices"]
    path = ("args", 1) if in_args else ("kwargs", "start_indices")
    size, full = site.operation.shape[labels.axis], len(labels)
    if size == full:
        return labels
    if not isinstance(starts, list | tuple) or not isinstance(starts[labels.axis], int):
        site.freeze(labels, "takes a slice of them at a place that is not an integer")
        return None
    start = starts[labels.axis]
    ids = labels.ids[start : start + size]
    site.width((*path, labels.axis), labels.ids[:start], owner="argument")
    site.width(("shape", labels.axis), ids)
    return Labels(labels.axis, site.keep_some(ids, 1))


@register_operation("Split")
def split(site: CallSite) -> Outputs:
    labels, outputs = site.inputs[0], len(site.output_shapes)
    if labels is None:
        return [None] * outputs
    operation = site.operation
    if operation.axis % len(site.input_shapes[0]) != labels.axis:
        return [labels] * outputs
    if isinstance(operation.indices_or_sections, int):
        first = site.tie_runs(labels.ids, operation.indices_or_sections)
        return [Labels(labels.axis, first)] * outputs
    for i, index in enumerate(operation.indices_or_sections):
        site.width(("indices_or_sections", i), labels.ids[:index])
    parts = np.split(labels.ids, operation.indices_or_sections)
    return [Labels(labels.axis, site.keep_some(ids, 1)) for ids in parts]


@register_operation("Matmul")
def matmul(site: CallSite) -> Outputs:
    """Rows of the first and columns of the second factor pass through; contracted channels stay."""
    out = None
    for place, labels in enumerate(site.inputs):
        if labels is None:
            continue
        rank = len(site.input_shapes[place])
        free = rank - 2 if place == 0 else rank - 1
        if labels.axis != free or out is not None or rank != len(site.output_shapes[0]) or len(site.inputs) < 2:
            site.freeze(labels, "multiplies matrices along them")
        else:
            out = labels
    return out


@register_rule(L.Dot)
def dot(site: CallSite) -> Outputs:
    for labels in site.inputs:
        site.freeze(labels, "contracts them")
    return None

"""Rules for operations that take a part of a tensor: indexing, slices, splits."""

import numpy as np

from keras_pcp.graph.labels import Labels
from keras_pcp.graph.rules import CallSite, Outputs, register_operation


@register_operation("GetItem")
def get_item(site: CallSite) -> Outputs:
    """`x[key]` with integers, slices, None and Ellipsis; the slice of the channel axis is rewritten when channels go."""
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
    ends = [e for e in (item.start, item.stop) if e is not None] if isinstance(item, slice) else []
    if not isinstance(item, slice) or any(not isinstance(e, int) or e < 0 for e in ends) or item.step not in (None, 1):
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
    """Keeps the labels of the positions between start and stop."""
    labels = site.inputs[0]
    if labels is None:
        return None
    in_args = len(site.args) > 1
    starts = site.args[1] if in_args else site.kwargs["start_indices"]
    path = ("args", 1) if in_args else ("kwargs", "start_indices")
    size = site.output_shapes[0][labels.axis]
    if not isinstance(starts, list | tuple) or not isinstance(starts[labels.axis], int):
        site.freeze(labels, "takes a slice of them at a place that is not an integer")
        return None
    start = starts[labels.axis]
    ids = labels.ids[start : start + size]
    site.width((*path, labels.axis), labels.ids[:start], owner="argument")
    if site.operation.shape[labels.axis] != -1:
        site.width(("shape", labels.axis), ids)
    return Labels(labels.axis, ids if size == len(labels) else site.keep_some(ids, 1))


@register_operation("Split", "ArraySplit")
def split(site: CallSite) -> Outputs:
    """Gives each piece the labels of its positions; equal pieces are tied."""
    labels, outputs = site.inputs[0], len(site.output_shapes)
    if labels is None:
        return [None] * outputs
    operation = site.operation
    if operation.axis % len(site.input_shapes[0]) != labels.axis:
        return [labels] * outputs
    if isinstance(operation.indices_or_sections, int):
        if len(labels) % operation.indices_or_sections:
            site.freeze(labels, "splits them into unequal parts")
            return [None] * outputs
        first = site.tie_runs(labels.ids, operation.indices_or_sections)
        return [Labels(labels.axis, first)] * outputs
    for i, index in enumerate(operation.indices_or_sections):
        site.width(("indices_or_sections", i), labels.ids[:index])
    parts = np.split(labels.ids, operation.indices_or_sections)
    return [Labels(labels.axis, site.keep_some(ids, 1)) for ids in parts]


@register_operation("Unstack")
def unstack(site: CallSite) -> Outputs:
    """Passes channels on without the axis that is removed; freezes them if it is their axis."""
    (axis,), labels = site.axes(site.operation.axis), site.inputs[0]
    out = None
    if labels is not None and labels.axis == axis:
        site.freeze(labels, "makes a tensor of each of them")
    elif labels is not None:
        out = Labels(labels.axis - (axis < labels.axis), labels.ids)
    return [out] * len(site.output_shapes)


@register_operation("Take")
def take(site: CallSite) -> Outputs:
    """Takes whole slices along one axis. Channels along that axis stay, because indices are not widths."""
    x, indices = site.argument(0, "x"), site.argument(1, "indices")
    site.freeze(site.labels_of(indices), "uses them as indices")
    labels, axis = site.labels_of(x), site.operation.axis
    if labels is None:
        return None
    if axis is None or labels.axis == axis % len(x.shape):
        site.freeze(labels, "takes some of them by index")
        return None
    return Labels(labels.axis + (labels.axis > axis % len(x.shape)) * (np.ndim(indices) - 1), labels.ids)

"""Rules for layers with weights: convolutions, dense, embedding, normalization, PReLU."""

import keras
import numpy as np

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.labels import Labels
from keras_pcp.graph.rules import CallSite, Outputs, register_operation, register_rule, spatial_size
from keras_pcp.graph.rules.elementwise import activated

L = keras.layers


def _channels_last(site: CallSite) -> None:
    if getattr(site.operation, "data_format", None) == "channels_first":
        raise UnsupportedModelError(
            f"layer {site.name} uses data_format='channels_first', which keras_pcp does not support "
            "(neither do TensorFlow on CPU and LiteRT). Build the model with 'channels_last'"
        )


@register_rule(L.Conv1D, L.Conv2D, L.Conv3D)
def convolution(site: CallSite) -> Outputs:
    """Reads all input channels and makes new ones, with groups inside each group."""
    _channels_last(site)
    layer, ids = site.operation, site.channels(site.inputs[0])
    site.macs(layer.kernel, spatial_size(site.output_shapes[0]))
    if layer.groups == 1:
        site.consume(layer.kernel, -2, ids)
        out = site.produce((layer.kernel, -1, "kernel"), (layer.bias, 0, "bias"))
        site.width("filters", out.ids)
        return activated(site, out, layer.activation)
    return activated(site, _grouped(site, ids), layer.activation)


def _grouped(site: CallSite, ids: np.ndarray | None) -> Labels | None:
    layer = site.operation
    inputs_per_group, filters_per_group = layer.kernel.shape[-2], layer.filters // layer.groups
    if inputs_per_group == 1:
        return _per_channel(
            site, ids, filters_per_group, layer.kernel, -1, layer.bias, filters="filters", groups="groups"
        )
    if ids is not None:
        # With one input per group it would be a depthwise convolution, in which each channel is a group.
        site.consume(layer.kernel, -2, site.keep_some(site.tie_runs(ids, layer.groups), 2))
    out = site.produce((layer.kernel, -1, "kernel"), (layer.bias, 0, "bias"), repeat=layer.groups)
    site.width("filters", out.ids)
    return out


def _per_channel(site, ids, multiplier, kernel, axis, bias, filters=None, groups=None) -> Labels | None:
    """Treats every input channel separately and makes `multiplier` outputs from each."""
    if ids is None:
        return None
    out = np.repeat(ids, multiplier)
    site.follow(kernel, axis, out if kernel.shape[axis] == len(out) else ids, "depthwise")
    site.follow(bias, 0, out, "bias")
    if filters is not None:
        site.width(filters, out)
        site.width(groups, ids)
    return Labels(len(site.output_shapes[0]) - 1, out)


@register_rule(L.DepthwiseConv1D, L.DepthwiseConv2D)
def depthwise(site: CallSite) -> Outputs:
    """Passes every channel on, as many times as the multiplier says."""
    _channels_last(site)
    layer, ids = site.operation, site.channels(site.inputs[0])
    site.macs(layer.kernel, spatial_size(site.output_shapes[0]))
    out = _per_channel(site, ids, layer.depth_multiplier, layer.kernel, -2, layer.bias)
    return activated(site, out, layer.activation)


@register_rule(L.SeparableConv1D, L.SeparableConv2D)
def separable(site: CallSite) -> Outputs:
    """Runs a depthwise convolution, then one that reads all channels and makes new ones."""
    _channels_last(site)
    layer, ids = site.operation, site.channels(site.inputs[0])
    for kernel in (layer.depthwise_kernel, layer.pointwise_kernel):
        site.macs(kernel, spatial_size(site.output_shapes[0]))
    site.follow(layer.depthwise_kernel, -2, ids, "depthwise")
    site.consume(layer.pointwise_kernel, -2, None if ids is None else np.repeat(ids, layer.depth_multiplier))
    out = site.produce((layer.pointwise_kernel, -1, "kernel"), (layer.bias, 0, "bias"))
    site.width("filters", out.ids)
    return activated(site, out, layer.activation)


@register_rule(L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
def transposed(site: CallSite) -> Outputs:
    """Reads all input channels and makes new ones, with the axes of the kernel swapped."""
    _channels_last(site)
    layer = site.operation
    site.macs(layer.kernel, spatial_size(site.input_shapes[0]))
    site.consume(layer.kernel, -1, site.channels(site.inputs[0]))
    out = site.produce((layer.kernel, -2, "kernel"), (layer.bias, 0, "bias"))
    site.width("filters", out.ids)
    return activated(site, out, layer.activation)


@register_rule(L.Dense)
def dense(site: CallSite) -> Outputs:
    """Reads all input channels and makes new ones."""
    layer = site.operation
    site.macs(layer.kernel, spatial_size(site.output_shapes[0]))
    site.consume(layer.kernel, 0, site.channels(site.inputs[0]))
    out = site.produce((layer.kernel, 1, "kernel"), (layer.bias, 0, "bias"))
    site.width("units", out.ids)
    return activated(site, out, layer.activation)


@register_rule(L.Embedding)
def embedding(site: CallSite) -> Outputs:
    """Makes new channels; its input is indices, not channels."""
    site.freeze(site.inputs[0], "reads them as indices")
    site.macs(site.operation.embeddings, 0)
    out = site.produce((site.operation.embeddings, 1, "kernel"))
    site.width("output_dim", out.ids)
    return out


@register_rule(L.BatchNormalization)
def batch_normalization(site: CallSite) -> Outputs:
    """Passes channels on, with four numbers for each."""
    layer, labels = site.operation, site.inputs[0]
    ids = site.channels(labels, layer.axis)
    for part in ("gamma", "beta", "moving_mean", "moving_variance"):
        name = {"gamma": "scale", "beta": "offset"}.get(part, part)
        site.follow(getattr(layer, part, None), 0, ids, name)
    return labels if ids is not None else None


def _over_axes(site: CallSite, axes: list[int], exact: bool = False) -> Outputs:
    """Scale and offset over some axes, statistics over the same axes."""
    labels, layer = site.inputs[0], site.operation
    axes = [a % len(site.input_shapes[0]) for a in axes]
    axis, ids = 0, None
    if labels is not None and labels.axis in axes:
        axis, ids = axes.index(labels.axis), labels.ids
    for name, part in (("gamma", "scale"), ("scale", "scale"), ("beta", "offset")):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            site.macs(variable, 0)
            site.follow(variable, axis, ids, part)
    if ids is not None and not exact:
        site.mark_inexact(labels)
    return labels


@register_rule(L.LayerNormalization)
def layer_normalization(site: CallSite) -> Outputs:
    """Passes channels on, but mixes them in its statistics."""
    axis = site.operation.axis
    return _over_axes(site, list(axis) if isinstance(axis, list | tuple) else [axis])


@register_rule(L.GroupNormalization)
def group_normalization(site: CallSite) -> Outputs:
    """Passes channels on and keeps groups of equal size. Exact if every channel is its own group."""
    layer, labels = site.operation, site.inputs[0]
    ids = site.channels(labels, layer.axis)
    if ids is None:
        return None
    alone = layer.groups == len(ids)
    if alone:
        site.width("groups", ids)
    else:
        # With one channel per group it would be instance normalization, in which each channel is a group.
        site.keep_some(site.tie_runs(ids, layer.groups), 2)
    return _over_axes(site, [layer.axis], exact=alone)


@register_rule(L.UnitNormalization)
def unit_normalization(site: CallSite) -> Outputs:
    """Passes channels on, but mixes them in the norm."""
    return _over_axes(site, list(np.atleast_1d(site.operation.axis)))


if hasattr(L, "RMSNormalization"):

    @register_rule(L.RMSNormalization)
    def rms_normalization(site: CallSite) -> Outputs:
        """Passes channels on, but mixes them in the mean square."""
        return _over_axes(site, list(np.atleast_1d(site.operation.axis)))


@register_rule(L.PReLU)
def prelu(site: CallSite) -> Outputs:
    """Passes channels on, with a slope for each unless they share one."""
    labels, alpha = site.inputs[0], site.operation.alpha
    site.macs(alpha, 0)
    if labels is not None and alpha.shape[labels.axis - 1] == len(labels):
        site.follow(alpha, labels.axis - 1, labels.ids, "slope")
    else:
        site.independent(alpha)
    return labels


@register_operation("keras.src.applications.convnext.LayerScale")
def layer_scale(site: CallSite) -> Outputs:
    """Passes channels on, with a factor for each."""
    ids = site.channels(site.inputs[0])
    site.follow(site.operation.gamma, 0, ids, "scale")
    site.width("projection_dim", ids)
    return site.inputs[0] if ids is not None else None


@register_rule(L.Normalization)
def normalization(site: CallSite) -> Outputs:
    """Freezes the channels that it reads, because it holds constants for each of them."""
    site.freeze(site.inputs[0], "holds constants for each of them")
    for weight in site.operation.weights:
        site.macs(weight, 0)
    return None


@register_rule(L.Rescaling)
def rescaling(site: CallSite) -> Outputs:
    """Passes channels on; freezes them if it holds constants for each of them."""
    if np.size(site.operation.scale) > 1 or np.size(site.operation.offset) > 1:
        site.freeze(site.inputs[0], "holds constants for each of them")
        return None
    return site.inputs[0]

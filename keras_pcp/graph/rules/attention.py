"""Rules for attention with projections: MultiHeadAttention, whose heads are channels, and GroupQueryAttention."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_pcp.graph.labels import Labels
from keras_pcp.graph.rules import CallSite, Outputs, register_rule, spatial_size


@register_rule(keras.layers.MultiHeadAttention)
def multi_head_attention(site: CallSite) -> Outputs:
    """Heads are channels: removing one equals zeroing its rows of the output projection, so this is exact."""
    layer, tensors = site.operation, sources(site)
    count(site, tensors, layer.attention_axes)
    kernels, biases = _weights(layer, "kernel"), _weights(layer, "bias")
    output = kernels["attention_output"]
    plain = set(kernels) == {"query", "key", "value", "attention_output"} and len(site.output_shapes) == 1
    if not plain or any(len(k.shape) != 3 for k in kernels.values()):
        for labels in site.inputs:
            site.freeze(labels, "has a gate, axes or outputs that are not followed")
        return [None] * len(site.output_shapes)
    _read(site, tensors, kernels)
    heads = [(k, 1, "kernel") for n, k in kernels.items() if n != "attention_output"]
    heads += [(b, 0, "bias") for n, b in biases.items() if n != "attention_output"]
    head_ids = site.produce(*heads).ids
    site.consume(output, 0, head_ids)
    site.width("_num_heads", head_ids)
    out = site.produce((output, 2, "kernel"), (biases.get("attention_output"), 0, "bias"))
    # Without an output_shape the layer would be loaded with as many outputs as the pruned query has channels.
    given = layer.get_config()["output_shape"]
    site.width(("_output_shape", 0) if isinstance(given, tuple | list) else "_output_shape", out.ids)
    return Labels(len(site.output_shapes[0]) - 1, out.ids)


if hasattr(keras.layers, "GroupQueryAttention"):

    @register_rule(keras.layers.GroupQueryAttention)
    def group_query_attention(site: CallSite) -> Outputs:
        """Keeps all heads. Query, key, value and output share one width, so their channels are removed together."""
        layer, tensors = site.operation, sources(site)
        count(site, tensors, (1,))
        kernels, biases = _weights(layer, "kernel"), _weights(layer, "bias")
        _read(site, tensors, kernels)
        for name, bias in biases.items():
            if name != "attention_output":
                site.independent(bias)
        out = site.produce((kernels["attention_output"], 2, "kernel"), (biases.get("attention_output"), 0, "bias"))
        inputs = [site.labels_of(tensor) for tensor in tensors.values()]
        fitting = [labels for labels in inputs if labels is not None and labels.axis == out.axis]
        if len(fitting) < len(inputs):
            for labels in (out, *inputs):
                site.freeze(labels, "needs the same number for query, key, value and output, and some are fixed")
        else:
            for labels in fitting:
                site.tie(out.ids, labels.ids)
            site.width("feature_dim", out.ids)
        return [out, *[None] * (len(site.output_shapes) - 1)]


def _read(site: CallSite, tensors: dict[str, Any], kernels: dict[str, Any]) -> None:
    """Reads the channels of query, key and value, and freezes those of masks."""
    for name, tensor in tensors.items():
        labels = site.labels_of(tensor)
        if labels is not None and labels.axis != len(tensor.shape) - 1:
            site.freeze(labels, "attends over them")
        elif labels is not None:
            site.consume(kernels[name], 0, labels.ids)
    if "gate" in kernels:
        query = site.labels_of(tensors["query"])
        site.consume(kernels["gate"], 0, None if query is None or query.axis != 2 else query.ids)
    for tensor, labels in zip(site.tensors, site.inputs, strict=True):
        if not any(tensor is source for source in tensors.values()):
            site.freeze(labels, "uses them as a mask")


def _weights(layer: Any, kind: str) -> dict[str, Any]:
    """Returns the kernels or the biases of the projections, by the name of the projection."""
    return {w.path.split("/")[-2]: w for w in layer.weights if w.path.endswith(f"/{kind}")}


def sources(site: CallSite) -> dict[str, Any]:
    """Returns the tensors that query, key and value are made from."""
    given = dict(zip(("query", "value", "key"), site.args, strict=False)) | site.kwargs
    return {n: given.get(n) if given.get(n) is not None else given["value"] for n in ("query", "key", "value")}


def count(site: CallSite, tensors: dict[str, Any], axes: Sequence[int]) -> None:
    """Counts the projections, and the two products for each pair of positions that attend to each other along `axes`."""
    query, value = (tensors[name].shape for name in ("query", "value"))
    kernels = _weights(site.operation, "kernel")
    for name, kernel in kernels.items():
        site.macs(kernel, spatial_size(tensors.get(name, tensors["query"]).shape))
    for bias in _weights(site.operation, "bias").values():
        site.macs(bias, 0)
    attended = [value[a] for a in axes]
    pairs = spatial_size(query) * (math.nan if None in attended else math.prod(attended))
    site.macs_product(pairs, kernels["query"], (1, 2))
    # Every head of the query sums values, even if several heads share them.
    width = kernels["value"].shape[2]
    if kernels["value"].shape[1] == kernels["query"].shape[1]:
        site.macs_product(pairs, kernels["value"], (1, 2))
    else:
        site.macs_product(pairs * width, kernels["query"], (1,))

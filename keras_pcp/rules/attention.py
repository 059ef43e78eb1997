"""Rule of MultiHeadAttention: heads are channels, and so are the columns of its output."""

import keras

from keras_pcp.labels import Labels
from keras_pcp.rules import CallSite, Outputs, register_rule, spatial_size


@register_rule(keras.layers.MultiHeadAttention)
def multi_head_attention(site: CallSite) -> Outputs:
    """Removing a head equals zeroing its rows of the output projection, so it is exact."""
    layer = site.operation
    kernels = {w.path.split("/")[-2]: w for w in layer.weights if w.path.endswith("/kernel")}
    biases = {w.path.split("/")[-2]: w for w in layer.weights if w.path.endswith("/bias")}
    output = kernels["attention_output"]
    plain = set(kernels) == {"query", "key", "value", "attention_output"} and len(site.output_shapes) == 1
    if not plain or any(len(k.shape) != 3 for k in kernels.values()):
        for labels in site.inputs:
            site.freeze(labels, "has a gate, axes or outputs that are not followed")
        return [None] * len(site.output_shapes)
    by_tensor = {id(t): x for t, x in zip(site.tensors, site.inputs, strict=True)}
    bound = dict(zip(("query", "value", "key"), site.args, strict=False)) | site.kwargs
    sources = {n: bound.get(n) if bound.get(n) is not None else bound["value"] for n in ("query", "key", "value")}
    for name, tensor in sources.items():
        labels = by_tensor[id(tensor)]
        if labels is not None and labels.axis != len(tensor.shape) - 1:
            site.freeze(labels, "attends over them")
        elif labels is not None:
            site.consume(kernels[name], 0, labels.ids)
        site.macs(kernels[name], spatial_size(tensor.shape))
    for tensor, labels in zip(site.tensors, site.inputs, strict=True):
        if not any(tensor is source for source in sources.values()):
            site.freeze(labels, "uses them as a mask")
    heads = [(k, 1, "kernel") for n, k in kernels.items() if n != "attention_output"]
    heads += [(b, 0, "bias") for n, b in biases.items() if n != "attention_output"]
    head_ids = site.produce(*heads).ids
    site.consume(output, 0, head_ids)
    site.width("_num_heads", head_ids)
    site.macs(output, spatial_size(site.output_shapes[0]))
    pairs = spatial_size(sources["query"].shape) * spatial_size(sources["value"].shape)
    site.macs_product(pairs, kernels["query"], (1, 2))
    site.macs_product(pairs, kernels["value"], (1, 2))
    out = site.produce((output, 2, "kernel"), (biases.get("attention_output"), 0, "bias"))
    # Without an output_shape the layer would be loaded with as many outputs as the pruned query has channels.
    given = layer.get_config()["output_shape"]
    site.width(("_output_shape", 0) if isinstance(given, tuple | list) else "_output_shape", out.ids)
    return Labels(len(site.output_shapes[0]) - 1, out.ids)

"""Rules for sums of products over named axes: einsum, the einsum layer, matrix multiplication."""

import string

import keras

from keras_pcp.graph.labels import Labels
from keras_pcp.graph.rules import CallSite, Outputs, product, register_operation, register_rule
from keras_pcp.graph.rules.elementwise import activated

L = keras.layers


def parse_equation(equation: str, ranks: list[int]) -> tuple[list[str], str] | None:
    """Returns one letter for each axis of each factor and of the result; None for an equation without `->`.

    The axes of an ellipsis get unused letters, the same ones in every term.
    """
    if "->" not in equation:
        return None
    left, result = equation.replace(" ", "").split("->")
    factors = left.split(",")
    free = [c for c in string.ascii_letters if c not in equation]
    hidden = max([r - len(f.replace("...", "")) for f, r in zip(factors, ranks, strict=True) if "..." in f], default=0)
    letters = "".join(free[:hidden])
    spelled = []
    for factor, rank in zip(factors, ranks, strict=True):
        own = rank - len(factor.replace("...", ""))
        spelled.append(factor.replace("...", letters[hidden - own :]))
    return spelled, result.replace("...", letters)


def contracted(site: CallSite, factors: list[str], result: str) -> Labels | None:
    """Returns the labels of a sum of products of the call's operands; channels that are summed over stay."""
    operands = list(zip([x for x, _ in site.operands()], factors, strict=True))
    out = None
    for labels, letters in operands:
        if labels is None:
            continue
        letter = letters[labels.axis]
        if letter not in result or letters.count(letter) > 1:
            site.freeze(labels, "sums over them")
        elif any(letter in own and (x is None or own[x.axis] != letter) for x, own in operands):
            site.freeze(labels, "combines them one by one with values that are fixed")
        elif out is None:
            out = Labels(result.index(letter), labels.ids)
        elif result[out.axis] == letter:
            site.tie(out.ids, labels.ids)
        else:
            site.freeze(labels, "multiplies them with another tensor's channels, all with all")
    return out


@register_operation("Einsum")
def einsum(site: CallSite) -> Outputs:
    """Follows labels through the letters of the equation."""
    parsed = parse_equation(site.operation.subscripts, [len(shape) for _, shape in site.operands()])
    if parsed is None:
        for labels in site.inputs:
            site.freeze(labels, "has an equation without '->', which is not followed")
        return None
    return contracted(site, *parsed)


@register_operation("Matmul")
def matmul(site: CallSite) -> Outputs:
    """Passes on rows of the first and columns of the second factor; freezes channels that are contracted."""
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


@register_rule(L.EinsumDense)
def einsum_dense(site: CallSite) -> Outputs:
    """Treats each kernel axis: summed over, it reads channels; in input and result, it follows; else it makes channels."""
    layer, labels = site.operation, site.inputs[0]
    parsed = parse_equation(layer.equation, [len(site.input_shapes[0]), len(layer.kernel.shape)])
    assert parsed is not None  # Keras wants an arrow in the equation of this layer
    (read, kernel), result = parsed
    others = [d for d, letter in zip(site.input_shapes[0][1:], read[1:], strict=True) if letter not in kernel]
    site.macs(layer.kernel, product(others))
    made = [letter for letter in kernel if letter not in read]
    site.macs(layer.bias, 0)
    out = None
    if labels is not None:
        letter = read[labels.axis]
        if letter in kernel and letter not in result:
            site.consume(layer.kernel, kernel.index(letter), labels.ids)
        elif letter in kernel and not made:
            site.follow(layer.kernel, kernel.index(letter), labels.ids, "kernel")
            site.follow(*_bias(layer, letter, result), labels.ids, "bias")
            out = Labels(result.index(letter), labels.ids)
        else:
            site.freeze(labels, "works along another axis than theirs")
    if made:
        letter = max(made, key=result.index)
        made_ids = site.produce(
            (layer.kernel, kernel.index(letter), "kernel"), (*_bias(layer, letter, result), "bias")
        ).ids
        out = Labels(result.index(letter), made_ids)
    if out is not None:
        if _bias(layer, result[out.axis], result)[0] is None:
            site.independent(layer.bias)
        if layer.bias is not None and len(layer.bias.shape) > 1:
            # Keras adds a bias with one axis longer than 1 along any axis of the input that has this length.
            site.keep_some(out.ids, 2 if out.axis == len(result) - 1 else len(out))
        place = out.axis - len(result) + len(layer.partial_output_shape) if layer.equation[0] == "." else out.axis - 1
        if layer.partial_output_shape[place] is not None:
            site.width(("partial_output_shape", place), out.ids)
    return activated(site, out, layer.activation)


def _bias(layer: keras.layers.EinsumDense, letter: str, result: str) -> tuple[keras.Variable | None, int]:
    """Returns (bias, its axis for a letter), or (None, 0). The bias is aligned to the end of the result."""
    has = layer.bias is not None and letter in layer.bias_axes
    return (layer.bias, result.index(letter) - len(result) + len(layer.bias.shape)) if has else (None, 0)

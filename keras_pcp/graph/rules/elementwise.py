"""Rules for element-wise operations: activations, dropout, merging, arithmetic, with broadcasting."""

from collections.abc import Callable

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.labels import Labels
from keras_pcp.graph.listing import listed
from keras_pcp.graph.rules import CallSite, Outputs, find_rule, register_operation, register_rule
from keras_pcp.support import internals
from keras_pcp.support.changes import undone

L = keras.layers

_ELEMENTWISE_FUNCTIONS = set(
    "relu relu6 leaky_relu elu selu celu gelu silu swish mish softplus softsign squareplus soft_shrink sparse_plus "
    "hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh sigmoid log_sigmoid sparse_sigmoid tanh tanh_shrink "
    "threshold exponential linear identity exp abs square sqrt".split()
)
_MIXING_FUNCTIONS = {"softmax", "log_softmax", "sparsemax"}


def activated(site: CallSite, labels: Labels | None, function: Callable | None) -> Labels | None:
    """Returns the labels after an activation function; raises if it is not known to be element-wise."""
    if labels is None or function is None:
        return labels
    name = getattr(function, "__name__", None) or getattr(function, "name", "")
    module = getattr(function, "__module__", None) or type(function).__module__
    if module.split(".")[0] in ("keras", "tensorflow"):
        if name in _ELEMENTWISE_FUNCTIONS:
            return labels
        if name in _MIXING_FUNCTIONS:
            if labels.axis == len(site.output_shapes[0]) - 1:
                site.mark_inexact(labels)
            return labels
    if isinstance(function, keras.Layer) and find_rule(function) in (same, activation):
        return labels
    if _runs_element_by_element(function):
        return labels
    raise UnknownFunction(name or repr(function))


def _runs_element_by_element(function: Callable) -> bool:
    """Returns whether all operations that a function runs on a symbolic tensor are element-wise."""
    x = keras.KerasTensor((None, 5, 3))
    try:
        with undone() as journal:
            result, nodes = listed(lambda: function(x), [x], journal)
    except Exception:  # whatever the function raises on a symbolic tensor
        return False
    constants = [
        v for n in nodes for v in tree.flatten(internals.call_arguments(n)) if not isinstance(v, keras.KerasTensor)
    ]
    return (
        all(find_rule(n.operation) in (same, merge) and isinstance(n.operation, keras.Operation) for n in nodes)
        and all(v is None or isinstance(v, int | float | str) for v in constants)
        and tuple(result.shape) == (None, 5, 3)
    )


class UnknownFunction(UnsupportedModelError):
    """An activation function that is not known to work element by element."""


@register_rule(
    L.Dropout,
    L.SpatialDropout1D,
    L.SpatialDropout2D,
    L.SpatialDropout3D,
    L.GaussianDropout,
    L.GaussianNoise,
    L.AlphaDropout,
    L.ActivityRegularization,
    L.Identity,
    L.ReLU,
    L.LeakyReLU,
    L.ELU,
)
@register_operation("keras.src.applications.convnext.StochasticDepth")
def same(site: CallSite) -> Outputs:
    """Passes every channel on as it is."""
    if len(site.inputs) > 1:
        return merge(site)
    labels, noise_shape = site.inputs[0], getattr(site.operation, "noise_shape", None)
    if labels is not None and noise_shape is not None and noise_shape[labels.axis] not in (None, 1):
        site.freeze(labels, "has a fixed noise_shape for them")
        return None
    return labels


register_operation(
    *"Absolute Abs Negative Square Sqrt Rsqrt Exp Exp2 Expm1 Log Log1p Log2 Log10 Reciprocal Sign Sin Cos Tan Sinh Cosh "
    "Tanh Arcsin Arccos Arctan Arcsinh Arccosh Arctanh Floor Ceil Round Trunc Cast SaturateCast Relu ReLU Relu6 "
    "Sigmoid SparseSigmoid Softplus Softsign SoftShrink SparsePlus Silu Squareplus LogSigmoid LeakyRelu HardSigmoid "
    "HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink Threshold Erf Erfc StopGradient Copy Identity NanToNum "
    "Isfinite Isnan Isinf LogicalNot ZerosLike OnesLike Fabs Angle Cbrt Conj Conjugate Real Imag Deg2rad Rad2deg Erfinv I0 "
    "Sinc Isneginf Isposinf Isreal Signbit BitwiseInvert BitwiseNot ConvertToTensor".split()
)(same)


@register_operation("Clip")
def clip(site: CallSite) -> Outputs:
    """Passes every channel on; freezes them if each has its own bounds."""
    if np.size(site.operation.x_min) > 1 or np.size(site.operation.x_max) > 1:
        site.freeze(site.inputs[0], "holds limits for each of them")
        return None
    return site.inputs[0]


@register_rule(L.Activation)
def activation(site: CallSite) -> Outputs:
    """Passes channels on if the function works element by element."""
    return activated(site, site.inputs[0], site.operation.activation)


@register_rule(L.Softmax)
@register_operation("Softmax", "LogSoftmax", "Sparsemax")
def softmax(site: CallSite) -> Outputs:
    """Passes channels on, but mixes them if it runs over their axis."""
    labels = site.inputs[0]
    if labels is not None and labels.axis in site.axes(getattr(site.operation, "axis", -1)):
        site.mark_inexact(labels)
    return labels


@register_rule(L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
@register_operation("keras.src.applications.inception_resnet_v2.CustomScaleLayer")
@register_operation(
    *"Add Subtract Multiply Divide TrueDivide DivideNoNan FloorDivide Maximum Minimum Fmax Fmin Power Mod Where Hypot "
    "Arctan2 Logaddexp Greater GreaterEqual Less LessEqual Equal NotEqual LogicalAnd LogicalOr "
    "LogicalXor Isclose Heaviside Logaddexp2 Fmod Nextafter Ldexp Gcd Lcm BitwiseAnd BitwiseOr BitwiseXor "
    "BitwiseLeftShift LeftShift BitwiseRightShift RightShift Select Polar FullLike".split()
)
def merge(site: CallSite) -> Outputs:
    """Works element by element, with broadcasting. An axis of extent 1 is broadcast and ties nothing."""
    rank = len(site.output_shapes[0])
    operands = site.operands()
    live = []
    for labels, shape in operands:
        if labels is None:
            continue
        axis = labels.axis + rank - len(shape)
        others = [(o, s) for o, s in operands if o is not labels]
        reason = _why_fixed(labels, axis, shape, others, rank) or _taken_for_bias(site, labels, others)
        if reason:
            site.freeze(labels, reason)
        elif shape[labels.axis] == site.output_shapes[0][axis]:
            live.append(Labels(axis, labels.ids))
    for labels in live:
        if labels.axis != live[-1].axis:
            site.freeze(labels, "spreads them over another tensor's channels")
        else:
            site.tie(live[-1].ids, labels.ids)
    return live[-1] if live else None


def _taken_for_bias(site: CallSite, labels: Labels, others: list) -> str | None:
    """Returns why channels stay if Keras could mistake a constant for their bias, or None.

    On TensorFlow, `keras.ops.add` adds a constant with one axis longer than 1 along whichever of the channel axes has that
    length, even if the constant lies along another axis. A pruned width could come to have that length.
    """
    for other, shape in others:
        long = [a for a, size in enumerate(shape) if size != 1]
        one = type(site.operation).__name__ == "Add" and other is None and len(long) == 1 and long[0] < len(shape) - 1
        if one and shape[long[0]] is not None and shape[long[0]] <= len(labels):
            return f"adds a constant of shape {shape}, which Keras would take for their bias at that width"
    return None


def _why_fixed(labels: Labels, axis: int, shape: tuple, others: list, rank: int) -> str | None:
    """Returns why the other operands do not allow labelled positions to be removed, or None."""
    size = shape[labels.axis]
    for other, other_shape in others:
        other_axis = axis - rank + len(other_shape)
        extent = other_shape[other_axis] if other_axis >= 0 else 1
        if size == 1 and extent != 1:
            return "broadcasts this single channel"
        apart = other is None or other.axis != other_axis
        if extent == 1 and (size != 1 or apart):
            continue
        if apart:
            return "combines them one by one with values that are fixed"
    return None

"""Rules for operations along axes: pooling, reductions, sorting, joining."""

import keras
import numpy as np

from keras_pcp.graph.labels import Labels
from keras_pcp.graph.rules import CallSite, Outputs, register_operation, register_rule
from keras_pcp.graph.rules.elementwise import merge

L = keras.layers


def _layers(*names: str) -> list[type]:
    return [getattr(L, n) for n in names if hasattr(L, n)]


@register_rule(
    *_layers(
        "MaxPooling1D",
        "MaxPooling2D",
        "MaxPooling3D",
        "AveragePooling1D",
        "AveragePooling2D",
        "AveragePooling3D",
        "AdaptiveMaxPooling1D",
        "AdaptiveMaxPooling2D",
        "AdaptiveMaxPooling3D",
        "AdaptiveAveragePooling1D",
        "AdaptiveAveragePooling2D",
        "AdaptiveAveragePooling3D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ZeroPadding3D",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
        "Resizing",
        "CenterCrop",
        "RandomCrop",
        "RandomFlip",
        "RandomRotation",
        "RandomTranslation",
        "RandomZoom",
    )
)
@register_operation(
    "MaxPool",
    "AveragePool",
    "AdaptiveMaxPool",
    "AdaptiveAveragePool",
    "Resize",
    "PadImages",
    "CropImages",
    "AffineTransform",
    "PerspectiveTransform",
    "GaussianBlur",
)
def spatial(site: CallSite) -> Outputs:
    """Works on the axes between batch and channels, on each channel separately."""
    for labels in site.inputs[1:]:
        site.freeze(labels, "takes them as settings")
    ids = site.channels_last(site.inputs[0])
    return None if ids is None else Labels(len(site.output_shapes[0]) - 1, ids)


@register_rule(
    *_layers(
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
    )
)
def global_pooling(site: CallSite) -> Outputs:
    """Passes channels on without their positions."""
    return spatial(site)


@register_operation(
    *"Mean Sum Max Min Amax Amin Prod Var Std Logsumexp All Any Argmax Argmin CountNonzero Median Ptp Norm Nanmean Nansum "
    "Nanmax Nanmin Nanprod Nanvar Nanstd Nanmedian Nanargmax Nanargmin".split()
)
def reduce(site: CallSite) -> Outputs:
    """Passes channels on if their axis stays; freezes them otherwise."""
    return _reduced(site, site.operation.axis)


@register_operation("Moments")
def moments(site: CallSite) -> Outputs:
    """Gives mean and variance the labels of a reduction."""
    return [_reduced(site, site.operation.axes)] * 2


@register_operation("Average")
def average(site: CallSite) -> Outputs:
    """A reduction; not followed if its weights have more than one axis."""
    if np.ndim(site.argument(1, "weights")) > 1:
        return refused(site)
    return _reduced(site, site.operation.axis)


def _reduced(site: CallSite, axis: int | tuple[int, ...] | None) -> Labels | None:
    labels, axes = site.inputs[0], set(site.axes(axis))
    if labels is None:
        return None
    if labels.axis in axes:
        site.freeze(labels, "reduces over them")
        return None
    gone = 0 if getattr(site.operation, "keepdims", False) else sum(a < labels.axis for a in axes)
    return Labels(labels.axis - gone, labels.ids)


@register_operation(*"Sort Argsort Argpartition Cumsum Cumprod Nancumsum Nancumprod Roll Diff TopK Rot90".split())
def along(site: CallSite) -> Outputs:
    """Works along some axes, separately for all others; channels on the axes that it works along are frozen."""
    labels, operation = site.inputs[0], site.operation
    axis = operation.axes if hasattr(operation, "axes") else getattr(operation, "axis", -1)
    if labels is not None and labels.axis in site.axes(axis):
        site.freeze(labels, "works along them")
        labels = None
    return [labels] * len(site.output_shapes)


@register_operation("TakeAlongAxis")
def take_along_axis(site: CallSite) -> Outputs:
    """Like an element-wise merge with the indices, except along the axis from which it takes."""
    axis = site.operation.axis
    if any(x is not None and x.axis in site.axes(axis) for x in site.inputs):
        return refused(site)
    return merge(site)


@register_operation("Glu")
def glu(site: CallSite) -> Outputs:
    """The second half of the channels gates the first half, one by one."""
    labels = site.inputs[0]
    if labels is None or labels.axis not in site.axes(site.operation.axis):
        return labels
    return Labels(labels.axis, site.tie_runs(labels.ids, 2))


@register_rule(L.Concatenate)
@register_operation("Concatenate", "Append", "Hstack", "Dstack")
def concatenate(site: CallSite) -> Outputs:
    """Puts labels side by side along the channel axis; ties the tensors along another one."""
    axis = {"Hstack": 1, "Dstack": 2}.get(type(site.operation).__name__)
    axis = site.operation.axis if axis is None else axis
    if axis is None or len(site.output_shapes[0]) != len(site.input_shapes[0]):
        return refused(site)
    axis %= len(site.output_shapes[0])
    if not any(x is not None and x.axis == axis for x in site.inputs):
        return _side_by_side(site)
    parts = []
    for labels, shape in site.operands():
        size = shape[axis]
        if size is None:  # where the channels of the tensors behind it begin is unknown
            return refused(site)
        if labels is not None and labels.axis != axis:
            site.freeze(labels, "joins other channels along another axis")
            labels = None
        parts.append(np.zeros(size, np.int64) if labels is None else labels.ids)
    return Labels(axis, np.concatenate(parts))


@register_operation("Stack")
def stack(site: CallSite) -> Outputs:
    """Ties the tensors and puts a new axis beside the channels."""
    labels, axis = _side_by_side(site), site.operation.axis % len(site.output_shapes[0])
    return None if labels is None else Labels(labels.axis + (labels.axis >= axis), labels.ids)


def _side_by_side(site: CallSite) -> Labels | None:
    """Ties tensors that are joined along an axis without channels."""
    operands = [labels for labels, _ in site.operands()]
    known = [x for x in operands if x is not None]
    if len(known) < len(operands) or len({x.axis for x in known}) > 1:
        for labels in known:
            site.freeze(labels, "joins them with a tensor whose channels are fixed")
        return None
    for labels in known[1:]:
        site.tie(known[0].ids, labels.ids)
    return known[0] if known else None


@register_operation("Normalize")
def normalize(site: CallSite) -> Outputs:
    """Passes channels on, but mixes them if it runs over their axis."""
    labels = site.inputs[0]
    if labels is not None and labels.axis in site.axes(site.operation.axis):
        site.mark_inexact(labels)
    return labels


@register_rule(L.Dot)
@register_operation(
    *"Dot Tensordot Vdot Inner Outer Kron Cross Ravel Trace Diag Diagonal Diagflat Tril Triu Correlate Corrcoef Conv "
    "DepthwiseConv SeparableConv ConvTranspose BatchNorm LayerNorm RMSNorm DotProductAttention OneHot MultiHot Unfold "
    "Fold Nonzero Bincount Digitize SearchSorted Quantile Percentile Nanquantile Nanpercentile Vstack Hsplit Vsplit "
    "Dsplit Meshgrid Vander Trapezoid UnravelIndex Scatter ScatterUpdate SliceUpdate Switch Cond Map Scan "
    "AssociativeScan WhileLoop ForiLoop VectorizedMap SegmentSum SegmentMax SegmentMin SegmentProd InTopK CDist Rearrange "
    "FFT FFT2 IFFT2 RFFT IRFFT STFT ISTFT ExtractSequences RGBToGrayscale RGBToHSV HSVToRGB MapCoordinates ElasticTransform "
    "ScaleAndTranslate SobelEdges SSIM PSNR Cholesky Det Eig Eigh Inv LuFactor Qr Solve SolveTriangular SVD Lstsq".split()
)
def refused(site: CallSite) -> Outputs:
    """Freezes the channels of operations that contract, mix or look up values in a way that is not followed."""
    for labels in site.inputs:
        site.freeze(labels, "contracts, mixes or looks them up in a way that is not followed")
    return [None] * len(site.output_shapes)

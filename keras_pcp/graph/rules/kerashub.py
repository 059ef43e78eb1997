"""Rules for KerasHub layers that own weights. KerasHub is not imported, and its blocks are opened, so they need no rules."""

from keras_pcp.graph.labels import Labels
from keras_pcp.graph.rules import CallSite, Outputs, register_operation
from keras_pcp.graph.rules.elementwise import same

_MODELS = "keras_hub.src.models"
_SCALES = {
    f"{_MODELS}.mobilenetv5.mobilenetv5_layers.LayerScale2d": ("gamma", "dim"),
    f"{_MODELS}.dinov2.dinov2_layers.DINOV2LayerScale": ("lambda1", "hidden_dim"),
    f"{_MODELS}.dinov3.dinov3_layers.DINOV3LayerScale": ("lambda1", "hidden_dim"),
}
_RMS_NORM = f"{_MODELS}.mobilenetv5.mobilenetv5_layers.RmsNorm2d"


@register_operation(*_SCALES)
def scale(site: CallSite) -> Outputs:
    """Passes channels on, with a factor for each."""
    cls = type(site.operation)
    weight, width = _SCALES[f"{cls.__module__}.{cls.__qualname__}"]
    return _scaled(site, getattr(site.operation, weight), width)


@register_operation(_RMS_NORM)
def rms_norm(site: CallSite) -> Outputs:
    """Passes channels on, with a factor for each, but mixes them in the mean square."""
    labels = _scaled(site, site.operation.gamma, "dim")
    site.mark_inexact(labels)
    return labels


def _scaled(site: CallSite, weight, width: str) -> Labels | None:
    if getattr(site.operation, "data_format", None) == "channels_first":
        site.freeze(site.inputs[0], "uses channels_first")
        return None
    ids = site.channels(site.inputs[0])
    site.follow(weight, 0, ids, "scale")
    site.width(width, ids)
    return site.inputs[0] if ids is not None else None


# Its scale and its bias are single numbers for all channels.
register_operation(f"{_MODELS}.hgnetv2.hgnetv2_layers.HGNetV2LearnableAffineBlock")(same)

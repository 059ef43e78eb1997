"""The models of keras.applications with random weights: every one, at its default size and at a small one."""

import keras
import numpy as np

A = keras.applications
# name: (default size, small size)
SIZES = {
    "VGG16": (224, 64),
    "VGG19": (224, 64),
    "ResNet50": (224, 64),
    "ResNet101": (224, 64),
    "ResNet152": (224, 64),
    "ResNet50V2": (224, 64),
    "ResNet101V2": (224, 64),
    "ResNet152V2": (224, 64),
    "MobileNet": (224, 64),
    "MobileNetV2": (224, 64),
    "MobileNetV3Small": (224, 64),
    "MobileNetV3Large": (224, 64),
    "EfficientNetB0": (224, 64),
    "EfficientNetB1": (240, 64),
    "EfficientNetB2": (260, 64),
    "EfficientNetB3": (300, 64),
    "EfficientNetB4": (380, 64),
    "EfficientNetB5": (456, 64),
    "EfficientNetB6": (528, 64),
    "EfficientNetB7": (600, 64),
    "EfficientNetV2B0": (224, 64),
    "EfficientNetV2B1": (240, 64),
    "EfficientNetV2B2": (260, 64),
    "EfficientNetV2B3": (300, 64),
    "EfficientNetV2S": (384, 64),
    "EfficientNetV2M": (480, 64),
    "EfficientNetV2L": (480, 64),
    "DenseNet121": (224, 64),
    "DenseNet169": (224, 64),
    "DenseNet201": (224, 64),
    "InceptionV3": (299, 128),
    "InceptionResNetV2": (299, 128),
    "Xception": (299, 96),
    "NASNetMobile": (224, 64),
    "NASNetLarge": (331, 64),
    "ConvNeXtTiny": (224, 64),
    "ConvNeXtSmall": (224, 64),
    "ConvNeXtBase": (224, 64),
    "ConvNeXtLarge": (224, 64),
    "ConvNeXtXLarge": (224, 64),
}


def build(name: str, *, small: bool = False, include_top: bool = True, pooling: str | None = None) -> keras.Model:
    """Builds a model with random weights and statistics; its output is that of the last layer before any softmax."""
    keras.utils.set_random_seed(0)
    options = {"include_top": include_top, "weights": None, "input_shape": (SIZES[name][small],) * 2 + (3,)}
    if include_top:
        options["classifier_activation"] = None
    model = getattr(A, name)(pooling=pooling, **options)
    randomize(model)
    return model


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Gives statistics, scales, offsets and biases random values, so that none of them can be left out unnoticed."""
    rng = np.random.default_rng(seed)
    for w in model.weights:
        if "variance" in w.path or "gamma" in w.path:
            w.assign(rng.uniform(0.5, 1.5, w.shape))
        elif len(w.shape) == 1 and "float" in w.dtype and "seed" not in w.path:
            w.assign(rng.normal(0, 0.2, w.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()

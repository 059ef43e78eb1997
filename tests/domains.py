"""Images of two domains and small networks that adapt from one to the other."""

import keras
import numpy as np

import keras_pcp

L = keras.layers


def features(width=8):
    x = keras.Input((8, 8, 1))
    y = L.Conv2D(width, 3, activation="relu", name="first")(x)
    y = L.Conv2D(width, 3, activation="relu", name="second")(y)
    return keras.Model(x, L.GlobalAveragePooling2D()(y))


def dann(width=8, **options):
    keras.utils.set_random_seed(0)
    domain_head = options.pop("domain_head", None) or keras.Sequential([L.Dense(6, activation="relu"), L.Dense(1)])
    found = keras_pcp.adaptation.DANN(features(width), L.Dense(3, name="logits"), domain_head, **options)
    found.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return found


def domains(count=96):
    """Stripes of three directions; in the target, brighter and noisier."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    i, j = np.mgrid[:8, :8]
    waves = np.stack([np.sin(i * 2.0), np.sin(j * 2.0), np.sin(i + j)])[y][..., None]
    return (waves.astype("float32"), y), (waves + 0.5 + rng.normal(0, 0.3, waves.shape)).astype("float32")


def operations(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    return [detail["op_name"] for detail in interpreter._get_ops_details() if detail["op_name"] != "DELEGATE"]

"""Hands a trained Keras classifier and the images of its fine-tuning over to PyTorch, for `torch_accuracy.py`."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pcp.graph.trace import trace

L = keras.layers


def steps_of(model: keras.Model) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Lists what a network of a few kinds of layers computes, and its weights in the layout of PyTorch.

    Returns:
        Steps, each a dict with `kind`, `inputs` and `output` (numbers of tensors), and {"step name": array}.
    """
    traced, steps, arrays = trace(model), [], {}
    maps = {}  # shapes (height, width, channels) of what was flattened
    for number, call in enumerate(c for c in traced.calls if not isinstance(c.operation, L.InputLayer)):
        layer = call.operation
        step: dict[str, Any] = {"inputs": call.inputs, "output": call.outputs[0]}
        if layer is None and len(call.outputs) == 1:  # into a nested model, or out of it
            step |= {"kind": "same"}
        elif isinstance(layer, L.Conv2D):
            step |= {"kind": "conv", "strides": layer.strides[0], "padding": layer.padding}
            arrays[f"{number} weight"] = layer.kernel.numpy().transpose(3, 2, 0, 1)
        elif isinstance(layer, L.DepthwiseConv2D) and layer.depth_multiplier == 1:
            step |= {"kind": "depthwise", "strides": layer.strides[0], "padding": layer.padding}
            arrays[f"{number} weight"] = layer.kernel.numpy().transpose(2, 3, 0, 1)
        elif isinstance(layer, L.Dense):
            kernel, shape = layer.kernel.numpy(), maps.get(call.inputs[0])
            if shape:  # PyTorch flattens channels first
                kernel = kernel.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
            step |= {"kind": "dense"}
            arrays[f"{number} weight"] = kernel.T
        elif isinstance(layer, L.BatchNormalization):
            step |= {"kind": "norm", "epsilon": layer.epsilon}
            names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
            arrays |= {f"{number} {theirs}": getattr(layer, ours).numpy() for theirs, ours in names.items()}
        elif isinstance(layer, L.Flatten):
            step |= {"kind": "flatten"}
            maps[call.outputs[0]] = traced.tensors[call.inputs[0]].shape[1:]
        elif isinstance(layer, L.ReLU) and not layer.negative_slope and not layer.threshold:
            step |= {"kind": "relu", "most": None if layer.max_value is None else float(layer.max_value)}
        elif isinstance(layer, L.Activation) and layer.activation is keras.activations.relu:
            step |= {"kind": "relu", "most": None}
        elif isinstance(layer, L.Dropout):
            step |= {"kind": "dropout", "rate": layer.rate}
        elif isinstance(layer, L.Rescaling):
            step |= {"kind": "rescale", "scale": float(layer.scale), "offset": float(layer.offset)}
        elif isinstance(layer, L.Resizing) and layer.interpolation == "bilinear":
            step |= {"kind": "resize", "size": [layer.height, layer.width]}
        elif isinstance(layer, L.Add):
            step |= {"kind": "add"}
        elif isinstance(layer, L.GlobalAveragePooling2D):
            step |= {"kind": "mean"}
        elif isinstance(layer, L.Normalization):
            mean, variance = (np.ravel(keras.ops.convert_to_numpy(v)).tolist() for v in (layer.mean, layer.variance))
            step |= {"kind": "normalize", "mean": mean, "variance": variance}
        elif isinstance(layer, L.ZeroPadding2D):
            step |= {"kind": "zeros", "amounts": [*layer.padding[1], *layer.padding[0]]}
        elif type(layer).__name__ == "GetItem" and (every := strides_of(call.args[1])):
            step |= {"kind": "every", "steps": every}
        elif type(layer).__name__ == "Pad" and layer.mode == "constant" and not np.any(layer.pad_width[:3]):
            step |= {"kind": "widen", "amounts": list(layer.pad_width[3])}
        elif isinstance(layer, L.MaxPooling2D) and layer.pool_size == layer.strides:
            step |= {"kind": "pool", "size": layer.pool_size[0]}
        else:
            raise SystemExit(
                f"layer {getattr(layer, 'name', None)!r} ({type(layer).__name__}) is not carried over to PyTorch"
            )
        if isinstance(layer, L.Conv2D | L.DepthwiseConv2D | L.Dense):
            if layer.activation is not keras.activations.linear:
                raise SystemExit(f"layer {layer.name!r} has an activation, which is not carried over to PyTorch")
            if layer.use_bias:
                arrays[f"{number} bias"] = layer.bias.numpy()
        steps.append(step | {"name": str(number)})
    return steps, arrays


def strides_of(key: Any) -> list[int] | None:
    """Returns the steps along rows and columns if an index into (samples, rows, columns, channels) has nothing else."""
    whole = [slice(None)] * 4
    if len(key) > 4 or not all(isinstance(k, slice) and (k.start, k.stop) == (None, None) for k in key):
        return None
    steps = [k.step or 1 for k in (*key, *whole[len(key) :])]
    return steps[1:3] if steps[0] == steps[3] == 1 else None


def hand_over(model: keras.Model, images: Any, epochs: int, val: tuple, test: tuple, folder: Path) -> None:
    """Writes `network.json`, `weights.npz`, `val.npz`, `test.npz` and the batches of each epoch into a folder."""
    steps, arrays = steps_of(model)
    (folder / "network.json").write_text(json.dumps(steps))
    np.savez(folder / "weights.npz", **arrays)
    for name, (x, y) in (("val", val), ("test", test)):
        np.savez(folder / f"{name}.npz", x=x.transpose(0, 3, 1, 2), y=y)
    for epoch in range(epochs):
        x, y = (np.stack(a) for a in zip(*((x.numpy(), y.numpy()) for x, y in images), strict=True))
        np.savez(folder / f"train{epoch}.npz", x=x.transpose(0, 1, 4, 2, 3), y=y)

"""Derivatives of losses by finite differences."""

import keras
import numpy as np
from zoo import inputs_for, outputs_of

L = keras.layers


class Penalty(keras.regularizers.Regularizer):
    """L2, which in Keras 3.8 does not work in float64."""

    def __call__(self, weight):
        return 0.1 * keras.ops.sum(keras.ops.square(weight))


def small():
    """A residual sum with penalties on its weights, behind a smooth activation."""
    keras.utils.set_random_seed(3)
    i = keras.Input((4, 4, 2))
    x = L.Conv2D(4, 1, name="stem", activation="softplus", kernel_regularizer=Penalty())(i)
    y = L.BatchNormalization()(L.Conv2D(3, 3, padding="same", name="inner", kernel_regularizer=Penalty())(x))
    y = L.Conv2D(4, 1, name="outer")(L.Activation("softplus")(y))
    x = L.Activation("softplus", name="sum")(L.Add()([x, y]))
    return keras.Model(i, L.Dense(2)(L.Flatten()(x)))


def problem(model, samples=5, seed=2):
    """Compiles a model and returns data for it and the loss of each sample, computed without Keras's losses."""
    rng = np.random.default_rng(seed)
    x = inputs_for(model, samples)
    y = [rng.normal(size=o.shape) for o in outputs_of(model, x)]
    model.compile("sgd", ["mse"] * len(y) if len(y) > 1 else "mse")

    def losses():
        squares = [np.square(o - t) for o, t in zip(outputs_of(model, x), y, strict=True)]
        return sum(s.reshape(samples, -1).mean(axis=1) for s in squares)

    return (x, y if len(y) > 1 else y[0]), losses


def slope(variable, where, losses, eps=1e-4):
    """Derivative of each sample's loss when the marked elements of a weight are multiplied by 1 + eps."""
    value = variable.numpy()
    found = []
    for sign in (1, -1):
        variable.assign(np.where(where, value * (1 + sign * eps), value))
        found.append(losses())
    variable.assign(value)
    return (found[0] - found[1]) / (2 * eps)


def rows_of(model, s, channel):
    """Marks the elements of a weight that belong to a channel."""
    where = np.zeros(model.weights[s.weight].shape, bool)
    np.moveaxis(where, s.axis, 0)[s.positions[s.channels == channel]] = True
    return where


def slow_gates(model, group, losses):
    """Derivatives of each sample's loss by a gate where the channels are read, by finite differences."""
    columns = []
    for c in range(group.num_channels):
        columns.append(
            sum(slope(model.weights[s.weight], rows_of(model, s, c), losses) for s in group.slices_of("consume"))
        )
    return np.stack(columns, axis=1)


def slow_gradients(model, index, losses, eps=1e-5):
    """Gradient of each sample's loss by every element of a weight, by finite differences: (samples, *shape)."""
    variable = model.weights[index]
    value = variable.numpy()
    columns = []
    for place in np.ndindex(value.shape):
        found = []
        for sign in (1, -1):
            moved = value.copy()
            moved[place] += sign * eps
            variable.assign(moved)
            found.append(losses())
        columns.append((found[0] - found[1]) / (2 * eps))
    variable.assign(value)
    return np.stack(columns, axis=1).reshape(-1, *value.shape)


def kernel_index(model, name):
    return [w.path for w in model.weights].index(model.get_layer(name).kernel.path)

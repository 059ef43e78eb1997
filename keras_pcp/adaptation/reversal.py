"""Gradient reversal and its two schedules.

References:
    Ganin & Lempitsky, Unsupervised Domain Adaptation by Backpropagation, ICML 2015.
    Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 17, 2016, arXiv 1505.07818.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.rules import register_rule
from keras_pcp.graph.rules.elementwise import same
from keras_pcp.support import checks, internals


@ops.custom_gradient
def _reversed(x, weight):
    def gradient(upstream):
        return -weight * upstream, ops.zeros_like(weight)

    return x, gradient


@keras.saving.register_keras_serializable("keras_pcp")
class GradientReversal(keras.layers.Layer):
    """Passes on values unchanged, and multiplies gradients by `-weight` on the way back.

    The layers before it learn to make the result of the layers behind it worse. The weight is a variable, so that it can
    follow a schedule. It is saved with the model.

    Args:
        weight: finite number, at least 0.

    Input shape: any. Output shape: the same.

    Raises:
        InvalidArgumentError: the weight is out of range.

    Example:
        >>> import keras, tensorflow as tf, keras_pcp
        >>> reverse, x = keras_pcp.GradientReversal(0.5), tf.Variable([1.0, 2.0])
        >>> with tf.GradientTape() as tape:
        ...     y = tf.reduce_sum(3 * reverse(x))
        >>> float(y), tape.gradient(y, x).numpy().tolist()
        (9.0, [-1.5, -1.5])
    """

    def __init__(self, weight: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        weight = checks.number("weight", weight, "[0, inf)")
        self.initial_weight = float(weight)
        self.weight = self.add_weight(
            name="weight", shape=(), initializer=keras.initializers.Constant(weight), trainable=False
        )
        self.supports_masking = True
        self.built = True

    def call(self, x):
        """Returns `x`."""
        return _reversed(x, ops.cast(self.weight, x.dtype))

    def compute_output_shape(self, input_shape):
        """Returns the shape of the input."""
        return input_shape

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "weight": self.initial_weight}


register_rule(GradientReversal)(same)


class ReversalSchedule(keras.callbacks.Callback):
    """Raises the weight of every `GradientReversal` in the model from 0 to `maximum` during training.

    Let p be the fraction of the training that is done. Before each step, the weight is set to
    `maximum * (2 / (1 + exp(-gamma * p)) - 1)`. If the number of steps is unknown, p changes once an epoch. A run that
    continues with `initial_epoch` also continues with its weight.

    Args:
        maximum: the weight that is approached, above 0.
        gamma: how fast it is approached, above 0; 10 in the paper.

    Raises:
        InvalidArgumentError: an argument is out of range, or (when `fit` starts) the model has no such layer.

    Example:
        >>> round(ReversalSchedule().at(0.25), 3), round(ReversalSchedule(maximum=0.5).at(1.0), 3)
        (0.848, 0.5)

    References:
        Ganin et al. 2016, section 5.2.2.
    """

    def __init__(self, maximum: float = 1.0, gamma: float = 10.0):
        super().__init__()
        self.maximum, self.gamma = (
            checks.number(name, value, "(0, inf)") for name, value in (("maximum", maximum), ("gamma", gamma))
        )
        self.layers: list[GradientReversal] = []
        self.epoch = 0

    def at(self, done: float) -> float:
        """Returns the weight after a fraction of the training in [0, 1]."""
        return self.maximum * (2 / (1 + math.exp(-self.gamma * done)) - 1)

    def on_train_begin(self, logs=None):
        """Finds the layers."""
        self.layers = [layer for layer in internals.layers_of(self.model) if isinstance(layer, GradientReversal)]
        if not self.layers:
            raise InvalidArgumentError(f"model {self.model.name!r} has no GradientReversal layer to schedule")

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the weight."""
        self.epoch = epoch
        self.set(0, 1)

    def on_train_batch_begin(self, batch, logs=None):
        """Sets the weight."""
        if self.params.get("steps"):
            self.set(batch, self.params["steps"])

    def set(self, step: int, steps: int) -> None:
        """Sets the weight for a step of the current epoch."""
        done = (self.epoch + step / steps) / max(1, self.params["epochs"])
        for layer in self.layers:
            layer.weight.assign(self.at(done))


@keras.saving.register_keras_serializable("keras_pcp")
class AnnealedLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of the paper: `initial / (1 + alpha * p) ** beta`, while p goes from 0 to 1 in `steps` steps.

    Args:
        initial: learning rate at the start, above 0.
        steps: number of steps of the training. Afterwards the rate is constant.
        alpha, beta: 10 and 0.75 in the paper.

    Raises:
        InvalidArgumentError: an argument is out of range.

    Example:
        >>> import keras_pcp
        >>> rate = keras_pcp.adaptation.AnnealedLearningRate(0.01, steps=100)
        >>> round(float(rate(0)), 4), round(float(rate(100)), 4)
        (0.01, 0.0017)

    References:
        Ganin et al. 2016, section 5.2.2.
    """

    def __init__(self, initial: float = 0.01, steps: int = 1000, alpha: float = 10.0, beta: float = 0.75):
        self.initial, self.steps = (
            checks.number("initial", initial, "(0, inf)"),
            checks.number("steps", steps, "[1, inf)"),
        )
        self.alpha, self.beta = checks.number("alpha", alpha, "[0, inf)"), checks.number("beta", beta, "[0, inf)")

    def __call__(self, step):
        """Returns the learning rate at a step."""
        done = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        return self.initial / (1 + self.alpha * done) ** self.beta

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {"initial": self.initial, "steps": self.steps, "alpha": self.alpha, "beta": self.beta}

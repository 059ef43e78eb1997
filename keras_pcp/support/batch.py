"""What the terms of a loss see of a training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loss term sees of a training step.

    Attributes:
        model: the model in training.
        x, y, y_pred, sample_weight: as `keras.Model.compute_loss` gets them; x may be None.
        step: training steps made so far in this run, a tensor.
        replicas: number of devices whose losses are added up. Divide a penalty by it.
        ops: `keras.ops`, for strategies, which do not import Keras.
    """

    model: Any
    x: Any
    y: Any
    y_pred: Any
    sample_weight: Any
    step: Any
    replicas: int
    ops: Any


LossTerm = Callable[[Any, Batch], Any]
"""A function that takes the loss so far and a `Batch`, and returns a new loss, such as the loss plus a penalty.

It is traced with the training step. Values that change between steps must be read from variables.
"""

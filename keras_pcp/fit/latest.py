"""Remembers the inputs of the latest training batches, so that pruning can look at samples that nobody passed to it."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import arrange_inputs
from keras_pcp.support.batch import Batch
from keras_pcp.surgery.in_place import strategy_scope

SAMPLES = 256
_BYTES = 2**25  # at most this much is kept, and copied twice in every step
_LEAST = 4


class Latest:
    """A term of the loss that changes nothing, but keeps the inputs of the latest samples in variables.

    Args:
        model: the model in training. If an input has no fixed size, or the samples would take too much memory, nothing is
            kept.

    Example:
        >>> import keras, numpy as np
        >>> from keras_pcp.repair.loss_terms import LossTerms
        >>> x = keras.Input((2,))
        >>> model = keras.Model(x, keras.layers.Dense(1)(x))
        >>> model.compile("sgd", "mse")
        >>> latest = Latest(model)
        >>> with LossTerms(model, [latest]).added():
        ...     _ = model.fit(np.ones((6, 2)), np.ones((6, 1)), batch_size=3, verbose=0)
        >>> [array.shape for array in latest.inputs()]
        [(6, 2)]
    """

    def __init__(self, model: keras.Model):
        self.trace = program_of(model).trace
        self.kept: list[keras.Variable] = []
        self.count: keras.Variable | None = None
        tensors = [self.trace.tensors[i] for i in self.trace.inputs]
        shapes = [tuple(t.shape[1:]) for t in tensors]
        numeric = all(keras.backend.is_float_dtype(t.dtype) or "int" in t.dtype for t in tensors)
        if not numeric or any(None in shape for shape in shapes):
            return
        bytes_each = sum(4 * math.prod(shape) for shape in shapes)
        samples = min(SAMPLES, _BYTES // max(bytes_each, 1))
        if samples < _LEAST:
            return
        with strategy_scope(model):
            self.kept = [
                keras.Variable(np.zeros((samples, *shape)), trainable=False, dtype=t.dtype, name="latest")
                for shape, t in zip(shapes, tensors, strict=True)
            ]
            self.count = keras.Variable(0, trainable=False, dtype="int32", name="count")

    def __call__(self, loss: Any, batch: Batch) -> Any:
        if batch.x is None or self.count is None:
            return loss
        try:
            arrays = arrange_inputs(self.trace, batch.x)
        except (InvalidArgumentError, ValueError, TypeError):  # a train_step of the model's own gives something else
            return loss
        if any(tuple(a.shape[1:]) != tuple(v.shape[1:]) for a, v in zip(arrays, self.kept, strict=True)):
            return loss
        for variable, array in zip(self.kept, arrays, strict=True):
            newest = array[: variable.shape[0]]
            variable.assign(ops.concatenate([newest, variable.value])[: variable.shape[0]])
        self.count.assign(ops.minimum(self.count.value + ops.shape(arrays[0])[0], self.kept[0].shape[0]))
        return loss

    def inputs(self) -> list[np.ndarray] | None:
        """Returns the inputs of the latest samples, newest first, in the order of the model's inputs; None if there are
        none."""
        count = 0 if self.count is None else int(self.count.numpy())
        return [v.numpy()[:count] for v in self.kept] if count >= _LEAST else None

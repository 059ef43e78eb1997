"""Records what a corrected cut does to the model in `fit`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np

from keras_pcp.deliver.report import Cut, PruningReport
from keras_pcp.fit.run import Run
from keras_pcp.statistics.trainability import mean_singular_value
from keras_pcp.support.changes import guarded

# For the Jacobian: at most so many samples, numbers in them, and directions. It must not take longer than a training step.
_SAMPLES, _NUMBERS, _DIRECTIONS = 4, 2**21, 8


@contextmanager
def recorded(run: Run, report: PruningReport, step: int) -> Iterator[None]:
    """Adds to the report what a cut inside the block loses, if inputs of the latest training batches are known."""
    inputs = run.latest()
    if inputs is None:
        yield
        return
    count = max(1, min(_SAMPLES, _NUMBERS // sum(math.prod(array.shape[1:]) for array in inputs)))
    few, uncut = [array[:count] for array in inputs], run.live.uncut
    before = _measured(run.live.model, few)
    yield
    if run.live.uncut != uncut:
        pair = before, _measured(run.live.model, few)
        report.cuts.append(Cut(step, dict(run.live.errors), pair if np.isfinite(pair).all() else None))


def _measured(model: keras.Model, inputs: list[np.ndarray]) -> float:
    """Returns the mean singular value; NaN if it cannot be measured, because a figure in a report must not end a `fit`."""
    if not all(keras.backend.is_float_dtype(str(array.dtype)) for array in inputs):
        return math.nan
    try:
        return guarded(lambda: mean_singular_value(model, inputs, directions=_DIRECTIONS))
    except Exception:  # an operation without a gradient, or too little memory
        return math.nan

"""Records what a corrected cut does to the model in `fit`."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from keras_pcp.deliver.report import Cut, PruningReport
from keras_pcp.fit.run import Run
from keras_pcp.statistics.trainability import mean_singular_value

SAMPLES = 16  # on which the Jacobian is measured


@contextmanager
def recorded(run: Run, report: PruningReport, step: int) -> Iterator[None]:
    """Adds to the report what a cut inside the block loses, if inputs of the latest training batches are known."""
    inputs = run.latest()
    if inputs is None:
        yield
        return
    few = [array[:SAMPLES] for array in inputs]
    differentiable = all(keras.backend.is_float_dtype(str(array.dtype)) for array in few)
    before = mean_singular_value(run.live.model, few) if differentiable else None
    uncut = run.live.uncut
    yield
    if run.live.uncut != uncut:
        after = mean_singular_value(run.live.model, few) if differentiable else None
        report.cuts.append(Cut(step, dict(run.live.errors), None if before is None else (before, after)))

"""Scores sub-nets: how far the outputs of the model are from those of the full net, on held-out samples.

The error of a stage is that of the full net with only this stage narrowed: the stage reads the features of the full net, and
all after it has its full width. So it depends only on the widths in the stage. The error itself is the loss by which the
full net teaches sub-nets at the outputs. Statistics of batch normalization are those of the scored network on the same
samples: it runs once in training mode to get them, and once with them. They are written nowhere. A network that has nothing
else that training changes, such as dropout, gives the same both times, and runs once.
"""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from keras import ops, tree

from keras_pcp.errors import InvalidArgumentError, NotFiniteError
from keras_pcp.graph.segments import Called, Segment, segment
from keras_pcp.graph.trace import arrange_inputs
from keras_pcp.repair.batch_norm import batch_normalizations
from keras_pcp.search import checkpoint
from keras_pcp.support import files, internals
from keras_pcp.support.changes import Journal, temporarily

if TYPE_CHECKING:
    from keras_pcp.supernet.model import StagewiseSupernet


class Scorer:
    """Compares sub-nets with the full net. The number of traces does not depend on the number of sub-nets.

    Args:
        supernet: the super-net. It must not be trained while it is scored.
        x: inputs, as arrays; all of them are one batch.

    Raises:
        NotFiniteError: the full net gives NaN or infinite outputs.
    """

    def __init__(self, supernet: "StagewiseSupernet", x: Any):
        self.supernet, plan = supernet, supernet.plan
        self.normalizations = [layer for layer in batch_normalizations(supernet.model) if layer.trainable]
        borders = tuple(dict.fromkeys(i for stage in plan.stages for i in stage.outputs))
        self._whole = replace(segment(plan.trace), outputs=borders)
        self._tails = [segment(plan.trace, stage.start) for stage in plan.stages]
        # A partial has no code that others share; by its code, TensorFlow would count all of them as one function.
        self._run_whole = tf.function(partial(self._run, self._whole, None))
        parts = zip(self._tails, plan.parts, strict=True)
        self._run_tails = [tf.function(partial(self._run, rest, part.weights)) for rest, part in parts]
        self.features = dict(zip(plan.trace.inputs, arrange_inputs(plan.trace, x), strict=True))
        self.twice = True
        made = self.outputs(None, plan.levels[:, -1])
        self.twice = False
        once = self.outputs(None, plan.levels[:, -1])
        self.twice = not all(_close(once[i], made[i]) for i in made)
        self.features |= made
        for i in plan.trace.outputs:
            if not np.isfinite(np.asarray(self.features[i], "float32")).all():
                raise NotFiniteError(
                    f"output {plan.trace.tensors[i].name!r} of model {supernet.model.name!r} has NaN or infinite values on "
                    "validation_data; train it again with a smaller learning rate"
                )

    def error(self, stage: int | None, widths: np.ndarray) -> float:
        """Returns the error of one stage of the sub-net with these widths, (groups,), or of the whole sub-net if None."""
        made, ranks = self.outputs(stage, widths), ops.convert_to_tensor(self.supernet.ranks)
        outputs = dict.fromkeys(self.supernet.plan.trace.outputs)
        return float(
            sum(self.supernet.error(i, made[i], self.features[i], widths, ranks) for i in outputs if i in made)
        )

    def outputs(self, stage: int | None, widths: np.ndarray) -> Mapping[int, Any]:
        """Returns what the network computes with one stage narrowed, or all of it if None, {number of a tensor: value}."""
        run, reads = self._run_whole, self._whole.inputs
        if stage is not None:
            run, reads = self._run_tails[stage], self._tails[stage].inputs
        return run({i: self.features[i] for i in reads}, ops.convert_to_tensor(widths, "int32"), self.twice)

    @property
    def num_traces(self) -> int:
        """How often functions have been traced."""
        return sum(run.experimental_get_tracing_count() for run in (self._run_whole, *self._run_tails))

    def _run(self, run: Segment, only: Collection[int] | None, features: Any, widths: Any, twice: bool) -> Any:
        """Runs calls once or, if training changes more than statistics, again with the statistics found."""
        supernet, called = self.supernet, Called(self.supernet.plan.trace, run)
        ranks = ops.convert_to_tensor(supernet.ranks)
        with temporarily(self._forget), supernet.narrowed(widths, ranks, only=only) as scope:
            made = called(features, training=True)
        if not twice:
            return made
        statistics = [v for layer in self.normalizations for v in (layer.moving_mean, layer.moving_variance)]
        state = [(v, scope.get_current_value(v)) for v in statistics]
        state = [(v, value) for v, value in state if value is not None]
        with supernet.narrowed(widths, ranks, state, only):
            return called(features, training=False)

    def _forget(self, journal: Journal) -> None:
        """Lets batch normalization take the statistics of the batch alone."""
        for layer in self.normalizations:
            journal.set(layer, "momentum", 0.0)


def _close(a: Any, b: Any) -> bool:
    """Whether two tensors differ by no more than rounding."""
    a, b = np.asarray(a, "float32"), np.asarray(b, "float32")
    return bool(np.abs(a - b).max(initial=0) <= 1e-4 * np.abs(b).max(initial=0))


class StageErrors:
    """The errors of stages that have been scored so far. They are kept in a file, if there is one.

    Args:
        supernet: the super-net.
        x: the inputs that stages are scored on, as arrays.
        file: where errors are written. If it exists, the errors in it are known already.

    Attributes:
        known: the errors.
        asked: keys of the errors that were asked for.
        seconds: time spent in computing them.

    Raises:
        InvalidArgumentError: the file is damaged, or belongs to another super-net or other samples.
        NotFiniteError: as in `Scorer`.
    """

    every = 20.0  # seconds between two writes

    def __init__(self, supernet: "StagewiseSupernet", x: Any, file: Path | None = None):
        self.plan, self.scorer, self.file, self.written = supernet.plan, Scorer(supernet, x), file, time.monotonic()
        self.known: dict[str, float] = {}
        self.asked: set[str] = set()
        self.seconds = 0.0
        if file is not None:
            inputs = [np.asarray(value) for value in tree.flatten(x)]
            inputs = [value.astype(str) if value.dtype == object else value for value in inputs]
            cuts = np.array([stage.start for stage in supernet.plan.stages])
            loss = supernet.teaching_loss
            named = "" if loss is None else f"{type(loss).__name__} {loss.get_config()}"
            what = [internals.array_of(supernet.ranks), supernet.plan.levels, cuts, np.array(named)]
            self.identity = checkpoint.digest([*supernet.model.get_weights(), *what, *inputs])
            self.known = self._read(file) if file.exists() else {}

    def of(self, stage: int, levels: np.ndarray) -> float:
        """Returns the error of a stage, given the levels of its groups; infinity if it is not a number."""
        widths, groups = self.plan.levels[:, -1].copy(), list(self.plan.parts[stage].groups)
        widths[groups] = self.plan.levels[groups, levels]
        return self._error(stage, widths, levels)

    def of_all(self, levels: np.ndarray) -> np.ndarray:
        """Returns the error of each stage, given the levels of all groups, (stages,)."""
        return np.array([self.of(i, levels[list(part.groups)]) for i, part in enumerate(self.plan.parts)])

    def whole(self, levels: np.ndarray) -> float:
        """Returns the error of a whole sub-net, given the levels of all groups; infinity if it is not a number."""
        return self._error(None, self.plan.levels[np.arange(len(levels)), levels], levels)

    def _error(self, stage: int | None, widths: np.ndarray, levels: np.ndarray) -> float:
        key = f"{'whole' if stage is None else stage}: {' '.join(map(str, levels.tolist()))}"
        self.asked.add(key)
        if key not in self.known:
            started = time.perf_counter()
            error = self.scorer.error(stage, widths)
            self.known[key] = error if np.isfinite(error) else np.inf
            self.seconds += time.perf_counter() - started
            if time.monotonic() - self.written > self.every:
                self.write()
        return self.known[key]

    def write(self) -> None:
        """Writes what is known; raises FileError if the system cannot write the file."""
        if self.file is not None:
            files.write(self.file, json.dumps({"supernet": self.identity, "errors": self.known}))
            self.written = time.monotonic()

    def _read(self, file: Path) -> dict[str, float]:
        try:
            data = json.loads(file.read_bytes())
            belongs, found = data["supernet"] == self.identity, {str(k): float(v) for k, v in data["errors"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                f"checkpoint {file} is damaged ({type(error).__name__}: {error}); delete it to start again"
            ) from error
        if not belongs:
            raise InvalidArgumentError(
                f"checkpoint {file} belongs to another super-net, to other widths, or to other samples; delete it to "
                "start again"
            )
        return found

"""Scores sub-nets: how far each stage of a sub-net is from the full net, on held-out samples.

Each stage reads the features of the full net, so a stage's error depends only on the widths in it. Statistics of batch
normalization are those of the sub-net on the same samples: the stage runs once in training mode to get them, and once
with them. They are written nowhere. A stage that has nothing else that training changes, such as dropout, gives the same
both times, and runs once.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from keras import ops, tree

from keras_pcp.errors import InvalidArgumentError, NotFiniteError
from keras_pcp.graph.trace import arrange_inputs
from keras_pcp.repair.batch_norm import batch_normalizations
from keras_pcp.search import checkpoint
from keras_pcp.supernet.stages import Called, Stage
from keras_pcp.support import files, internals
from keras_pcp.support.changes import Journal, temporarily

if TYPE_CHECKING:
    from keras_pcp.supernet.model import StagewiseSupernet


class Scorer:
    """Compares stages of sub-nets with those of the full net. Each stage is traced twice, whatever the number of sub-nets.

    Args:
        supernet: the super-net. It must not be trained while it is scored.
        x: inputs, as arrays; all of them are one batch.
        stages: the stages, by default those of the super-net.

    Raises:
        NotFiniteError: the full net gives NaN or infinite outputs.
    """

    def __init__(self, supernet: "StagewiseSupernet", x: Any, stages: Sequence[Stage] = ()):
        self.supernet, self.stages = supernet, tuple(stages) or supernet.plan.stages
        self.normalizations = [layer for layer in batch_normalizations(supernet.model) if layer.trainable]
        traced, full = supernet.plan.trace, supernet.plan.levels[:, -1]
        self.features: dict[int, Any] = dict(zip(traced.inputs, arrange_inputs(traced, x), strict=True))
        self._compiled = [tf.function(self._run(stage)) for stage in self.stages]
        self._again = [True] * len(self.stages)
        for number in range(len(self.stages)):
            made = self.outputs(number, full)
            self._again[number] = False
            once = self.outputs(number, full)
            self._again[number] = not all(_close(once[i], made[i]) for i in made)
            self.features |= made
        for i in set(traced.outputs) & set(self.features):
            if not np.isfinite(np.asarray(self.features[i], "float32")).all():
                raise NotFiniteError(
                    f"output {traced.tensors[i].name!r} of model {supernet.model.name!r} has NaN or infinite values on "
                    "validation_data; train it again with a smaller learning rate"
                )

    def score(self, stage: int, widths: np.ndarray) -> float:
        """Returns the error of one stage of the sub-net with these widths, (groups,): 0 or more, a sum over its outputs."""
        made, ranks = self.outputs(stage, widths), ops.convert_to_tensor(self.supernet.ranks)
        each = (self.supernet.relative_error(i, made[i], self.features[i], widths, ranks) for i in made)
        return float(sum(each))

    def outputs(self, stage: int, widths: np.ndarray) -> Mapping[int, Any]:
        """Returns what one stage makes of the full net's features, {number of a tensor: value}."""
        features = {i: self.features[i] for i in self.stages[stage].inputs}
        return self._compiled[stage](features, ops.convert_to_tensor(widths, "int32"), self._again[stage])

    @property
    def num_traces(self) -> int:
        """How often stages have been traced."""
        return sum(function.experimental_get_tracing_count() for function in self._compiled)

    def _run(self, stage: Stage) -> Any:
        """Returns the function (features, widths, whether to run again with the statistics found) -> outputs of a stage."""
        supernet, called = self.supernet, Called(self.supernet.plan.trace, stage)
        statistics = [v for layer in self.normalizations for v in (layer.moving_mean, layer.moving_variance)]

        def run(features, widths, again):
            ranks = ops.convert_to_tensor(supernet.ranks)
            with temporarily(self._forget), supernet.narrowed(widths, ranks) as scope:
                made = called(features, training=True)
            if not again:
                return made
            state = [(v, scope.get_current_value(v)) for v in statistics]
            with supernet.narrowed(widths, ranks, [(v, value) for v, value in state if value is not None]):
                return called(features, training=False)

        return run

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
            weights = [*supernet.model.get_weights(), internals.array_of(supernet.ranks)]
            self.identity = checkpoint.digest([*weights, supernet.plan.levels, cuts, *inputs])
            self.known = self._read() if file.exists() else {}

    def of(self, stage: int, levels: np.ndarray) -> float:
        """Returns the error of a stage, given the levels of its groups; infinity if it is not a number."""
        key = f"{stage}: {' '.join(map(str, levels.tolist()))}"
        self.asked.add(key)
        if key not in self.known:
            widths, groups = self.plan.levels[:, -1].copy(), list(self.plan.parts[stage].groups)
            widths[groups] = self.plan.levels[groups, levels]
            started = time.perf_counter()
            error = self.scorer.score(stage, widths)
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

    def _read(self) -> dict[str, float]:
        try:
            data = json.loads(self.file.read_bytes())
            belongs, found = data["supernet"] == self.identity, {str(k): float(v) for k, v in data["errors"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                f"checkpoint {self.file} is damaged ({type(error).__name__}: {error}); delete it to start again"
            ) from error
        if not belongs:
            raise InvalidArgumentError(
                f"checkpoint {self.file} belongs to another super-net, to other widths, or to other samples; delete it to "
                "start again"
            )
        return found

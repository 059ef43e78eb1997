"""The search for the best sub-net of a trained super-net."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import NotFiniteError
from keras_pcp.graph.selection import Selection
from keras_pcp.plots import plot_front, saved
from keras_pcp.repair.batch_norm import reestimate_batch_norm
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.supernet.evolution import evolve
from keras_pcp.supernet.growing import StageTables
from keras_pcp.supernet.scoring import StageErrors
from keras_pcp.supernet.tables import distinct_levels
from keras_pcp.support import checks, internals
from keras_pcp.support.data import check_inputs, count_samples, take_samples, with_any_labels
from keras_pcp.support.files import check_target
from keras_pcp.support.models import check_finite
from keras_pcp.surgery.copies import prune_model

if TYPE_CHECKING:
    from keras_pcp.supernet.model import StagewiseSupernet

Method = Literal["dynamic", "evolution"]


@dataclass(frozen=True, eq=False)
class Subnet:
    """A sub-net: its selection in the numbering of the unpruned model, costs, and its error, a sum over stages."""

    selection: Selection
    cost: dict[str, float]
    error: float


@dataclass(frozen=True, eq=False)
class SupernetSearch:
    """The result of a search.

    Attributes:
        model: the best sub-net as a plain Keras model, with weights of the super-net and statistics of batch normalization
            from the validation samples. Fine-tune it in an ordinary `fit`.
        selection: what it keeps, in the numbering of the unpruned model.
        cost: {"macs": ..., ...}: what it costs, for each limit.
        error: its error, a sum over stages.
        front: all sub-nets that no other beats that can be made of the scored stages, the cheapest first; most of them near
            the limits. With `method="evolution"`, only the one found.
        tied: groups that reach over a cut, so that the stages on both sides have the same width.
        evaluations: number of different options of stages that were scored.
        seconds: {"scoring": ..., "choosing": ...}.
    """

    model: keras.Model
    selection: Selection
    cost: dict[str, float]
    error: float
    front: tuple[Subnet, ...]
    tied: tuple[str, ...]
    evaluations: int
    seconds: dict[str, float]

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws error against cost for the front, and the sub-net found (needs matplotlib).

        Returns the matplotlib figure. With `path`, also saves it to that file.
        """
        return saved(plot_front([(n.cost, n.error) for n in self.front], (self.cost, self.error)), path)


def search(
    supernet: "StagewiseSupernet",
    *,
    max_macs: float | int | None = None,
    max_params: float | int | None = None,
    max_bytes: float | int | None = None,
    validation_data: Any,
    samples: int = 512,
    method: Method = "dynamic",
    evaluations: int = 150,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    verbose: bool = True,
) -> SupernetSearch:
    """Finds the widths with the least error under limits. The super-net stays as it is.

    The error of a sub-net is a sum over its stages. That of a stage is how far the outputs are from those of the
    full net if only this stage is narrowed. So every stage is scored alone, and the best combination of what was scored is
    found exactly, by dynamic programming.

    Groups that are not `exact`, such as those under layer normalization, are scored with statistics over all channels, as in
    `masked`.

    Args:
        supernet: a trained super-net.
        max_macs, max_params, max_bytes: limits, as in `ProgressivePruning`.
        validation_data: held-out samples: inputs, (x, y) or a dataset. Labels are not used.
        samples: number of samples for scoring. They are one batch, so they must fit into memory.
        method: `"dynamic"`: dynamic programming over tables of stages. `"evolution"`: evolutionary search.
        evaluations: with `"dynamic"`, the most options of a stage that are scored. If a stage has more, some are scored to
            begin with, and then those of the sub-nets that may be best, by estimates from what has been scored, until no
            other is likely to be better. With `"evolution"`, the number of sub-nets.
        seed: for the draws.
        checkpoint: a file to which scores are written as they come. If it exists, they are not computed again.
        verbose: whether to show a progress bar.

    Raises:
        InvalidArgumentError: an option is out of range, the data does not fit the model, or the checkpoint is damaged or
            belongs to another super-net or other samples.
        FileError: the checkpoint cannot be written.
        NotFiniteError: the super-net has or gives NaN or infinite values, or so do all of its sub-nets that hold the limits
            and were scored.
        LimitError: the limits cannot be reached with the narrowest sub-net.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((8,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(16, activation="relu")(x)))
        >>> supernet = keras_pcp.StagewiseSupernet(model, num_stages=1)
        >>> found = supernet.search(max_macs=0.5, validation_data=np.random.rand(64, 8), verbose=False)
        >>> found.model.count_params() < model.count_params(), found.cost["macs"] <= 0.5 * 160
        (True, True)
    """
    problem = Problem.of(supernet.plan.graph, Limits(max_macs, max_params, max_bytes))
    checks.choice("method", method, get_args(Method))
    checks.count("samples", samples), checks.count("evaluations", evaluations), checks.count("seed", seed, 0)
    ranks, levels = internals.array_of(supernet.ranks), supernet.plan.levels
    problem.check_reachable(supernet.plan.gating.selection(levels[:, 0], ranks))
    x = take_samples(with_any_labels(validation_data), samples, seed, "validation_data")[0]
    check_inputs(supernet.model, x, "validation_data")
    check_finite(supernet.model)
    errors = StageErrors(supernet, x, None if checkpoint is None else check_target(checkpoint))
    run = _dynamic if method == "dynamic" else _evolution
    try:
        front, best, seconds = run(supernet, problem, errors, evaluations, seed, verbose)
    finally:
        errors.write()
    found = front[best]
    model = prune_model(supernet.model, supernet.plan.graph, found.selection)
    reestimate_batch_norm(model, (tree.map_structure(np.asarray, x), np.zeros(count_samples(x))))
    return SupernetSearch(
        model=model,
        selection=found.selection,
        cost=found.cost,
        error=found.error,
        front=tuple(front),
        tied=supernet.plan.tied,
        evaluations=len(errors.asked),
        seconds=seconds,
    )


def _dynamic(
    supernet: "StagewiseSupernet", problem: Problem, errors: StageErrors, most: int, seed: int, verbose: bool
) -> tuple[list[Subnet], int, dict[str, float]]:
    """Returns the front, the number of the best sub-net in it, and seconds."""
    bounds, started, before = list(problem.bounds.values()), time.perf_counter(), errors.seconds
    tables = StageTables(supernet, errors, list(problem.bounds), most, seed, verbose)
    front, scored = tables.refine(bounds), tables.scored()
    best = front.best(bounds)
    if best is None:
        raise _not_finite()
    subnets = []
    for chosen, cost, error in zip(front.options, front.costs.tolist(), front.errors.tolist(), strict=True):
        selection = _selection(supernet, tables.levels(scored, chosen))
        subnets.append(Subnet(selection, dict(zip(problem.bounds, cost, strict=True)), error))
    return subnets, best, _seconds(started, errors.seconds - before)


def _selection(supernet: "StagewiseSupernet", levels: np.ndarray) -> Selection:
    """Returns what the sub-net with these levels keeps."""
    widths = supernet.plan.levels[np.arange(len(levels)), levels]
    return supernet.plan.gating.selection(widths, internals.array_of(supernet.ranks))


def _not_finite() -> NotFiniteError:
    return NotFiniteError(
        "all sub-nets within the limits that were scored have NaN or infinite outputs; train the super-net again with a "
        "smaller learning rate"
    )


def _seconds(started: float, scoring: float) -> dict[str, float]:
    return {"scoring": scoring, "choosing": time.perf_counter() - started - scoring}


def _evolution(
    supernet: "StagewiseSupernet", problem: Problem, errors: StageErrors, evaluations: int, seed: int, verbose: bool
) -> tuple[list[Subnet], int, dict[str, float]]:
    """Returns the sub-net that evolution finds, as `_dynamic` does."""
    plan, started, before = supernet.plan, time.perf_counter(), errors.seconds
    bar = keras.utils.Progbar(evaluations, verbose=int(verbose), unit_name="sub-net")
    first, groups = distinct_levels(plan.levels), np.arange(len(plan.levels))

    def error(levels: np.ndarray) -> float:
        bar.add(1)
        return float(errors.of_all(first[groups, levels]).sum())

    def allowed(levels: np.ndarray) -> bool:
        return problem.holds(_selection(supernet, levels))

    sizes = plan.levels.shape[1], len(plan.levels)
    levels, least = evolve(error, allowed, *sizes, evaluations=evaluations, seed=seed)
    if not np.isfinite(least):
        raise _not_finite()
    selection = _selection(supernet, levels)
    cost = {name: getattr(problem.cost(selection), name) for name in problem.bounds}
    return [Subnet(selection, cost, least)], 0, _seconds(started, errors.seconds - before)

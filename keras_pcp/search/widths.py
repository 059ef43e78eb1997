"""The search for widths without training."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.fit.metric import Measuring
from keras_pcp.fit.observation import Moment
from keras_pcp.fit.run import Criteria, Run
from keras_pcp.graph.build import OnUnknown, build_graph
from keras_pcp.graph.selection import Selection
from keras_pcp.search import checkpoint as checkpoint_file
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.strategies.protocol import Strategy, check_strategy
from keras_pcp.support import checks
from keras_pcp.support.data import check_source, with_any_labels
from keras_pcp.support.files import check_target
from keras_pcp.support.models import check_model
from keras_pcp.surgery.copies import prune_model


def search_widths(
    model: keras.Model,
    *,
    max_macs: float | int | None = None,
    max_params: float | int | None = None,
    max_bytes: float | int | None = None,
    validation_data: Any,
    criterion: Criteria = "l1",
    strategy: Strategy | None = None,
    measuring: Measuring | None = None,
    refit_data: Any = None,
    frozen_layers: Iterable[str] = (),
    on_unknown: OnUnknown = "error",
    checkpoint: str | Path | None = None,
    verbose: bool = True,
) -> Selection:
    """Searches for the widths of all layers without training: runs the rounds of `ProgressivePruning` without a `fit`.

    The model stays as it is. It must be compiled, because its loss and metrics are used. With `refit_data`, the rounds run
    on a copy that is pruned and refit; `refit` then does the same with the result of `prune_model`.

    Args:
        model: a trained, compiled model.
        max_macs, max_params, max_bytes: limits, as in `ProgressivePruning`.
        validation_data: labelled samples for the attempts.
        criterion, strategy, measuring, refit_data, frozen_layers, on_unknown: as in `Pruning`. A strategy that needs
            training between its actions is refused.
        checkpoint: a file to which the state is written after every round. If it exists, the search goes on from there.
            With `refit_data`, what was pruned until then is refit at once, so later choices may differ slightly.
        verbose: whether to show a progress bar.

    Returns:
        The `Selection` to pass to `prune_model`.

    Raises:
        InvalidArgumentError: an option is out of range, the data does not fit the model, the checkpoint is damaged or
            belongs to another search, or a criterion cannot be recognized later (with a checkpoint, it must be a function, a
            `functools.partial` or a dataclass).
        FileError: the checkpoint cannot be written; the previous one is unchanged.
        LimitError: the limits cannot be reached.
        PruningError: no more channels can be removed, although the limits are not reached yet.
        UnsupportedModelError: the model has no functional graph, or has a layer without a rule.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((8,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(16, activation="relu")(x)))
        >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        >>> data = np.random.rand(64, 8), np.arange(64) % 2
        >>> selection = keras_pcp.search_widths(model, max_macs=0.5, validation_data=data, verbose=False)
        >>> keras_pcp.count_cost(keras_pcp.build_graph(model), selection).macs <= 0.5 * 160
        True
    """
    check_model("model", model)
    limits = Limits(max_macs, max_params, max_bytes)
    measuring = Measuring() if measuring is None else measuring
    checks.instance("measuring", measuring, Measuring, "a keras_pcp.Measuring")
    check_source(validation_data, "validation_data", function=True)
    strategy = Progressive() if strategy is None else check_strategy(strategy)
    if strategy.needs.training:
        raise InvalidArgumentError(
            f"{type(strategy).__name__} needs training between its actions, which a search does not do; use it in "
            "keras_pcp.Pruning"
        )
    if refit_data is not None:
        check_source(with_any_labels(refit_data), "refit_data")
    file = None if checkpoint is None else check_target(checkpoint)
    checks.instance("verbose", verbose, int | np.bool_, "True or False")
    working = model if refit_data is None else _copied(model)
    problem = Problem.of(build_graph(working, on_unknown=on_unknown, frozen_layers=frozen_layers), limits)
    run = Run(working, problem, strategy, criterion, validation_data, measuring, refit_data, judge=model)
    if file:
        identity = _identity(model, run, measuring)
        if file.exists():
            checkpoint_file.read(file, identity, run)
            if refit_data is not None:
                run.carry_out(None, more=True)
    bar = keras.utils.Progbar(100, verbose=int(verbose), stateful_metrics=["macs", "metric"], unit_name="percent")
    while run.progress < 1:
        action = run.ask(Moment())
        if action is None or action.how != "cut":
            raise PruningError(
                f"{type(strategy).__name__} stopped at {run.progress:.1%} of the way, and there is no training to wait for; "
                "use it in keras_pcp.Pruning"
            )
        if file:
            checkpoint_file.write(file, identity, run)
        if refit_data is not None:
            run.carry_out(action, more=True)
        latest = run.rounds[-1]
        values = [("macs", latest.macs / problem.full.macs)]
        values += [("metric", latest.before.metric)] if latest.before else []
        bar.update(min(100, int(100 * run.progress)), values)
    return run.kept


def _identity(model: keras.Model, run: Run, measuring: Measuring) -> dict[str, Any]:
    """Returns what a search depends on, JSON-ready; two searches are the same if it is."""
    samples, compiled = run.seen.samples, model.get_compile_config() or {}
    evaluator, asked = samples.evaluator, measuring.monitor
    assert evaluator is not None  # there are always validation samples in a search
    found = {
        "groups": {g.name: g.num_channels for g in run.problem.graph},
        "calls": run.problem.graph.fingerprint,
        "limits": run.problem.bounds,
        "strategy": repr(run.strategy),
        "criteria": [checkpoint_file.identify(c) for c in run.seen.criteria],
        "measuring": repr(replace(measuring, monitor=None, mode="auto")),
        "monitor": [evaluator.measure.text, checkpoint_file.identify(asked, "monitor") if callable(asked) else ""],
        "weights": checkpoint_file.digest(model.get_weights()),
        "samples": checkpoint_file.digest(tree.flatten((evaluator.x, evaluator.y, evaluator.weight))),
        "loss and metrics": str(
            {key: compiled.get(key) for key in ("loss", "loss_weights", "metrics", "weighted_metrics")}
        ),
    }
    if run.live.refit_on is not None:
        found["refit_data"] = checkpoint_file.digest(tree.flatten(run.live.refit_on[0]))
    return found


def _copied(model: keras.Model) -> keras.Model:
    """Returns a copy of a model, compiled with its loss."""
    copy = prune_model(model, build_graph(model, on_unknown="freeze"), Selection())
    if getattr(model, "compiled", False):
        copy.compile(loss=model.loss, loss_weights=(model.get_compile_config() or {}).get("loss_weights"))
    return copy

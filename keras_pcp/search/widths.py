"""The search for widths without training."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.fit.metric import Monitor, Monitored
from keras_pcp.fit.run import Criteria, Search
from keras_pcp.graph.build import build_graph
from keras_pcp.graph.selection import Selection
from keras_pcp.search import checkpoint as checkpoints
from keras_pcp.select.budget import Limits
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.strategies.rounds import Strategy, check_strategy
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
    monitor: Monitored = None,
    mode: str = "auto",
    refit_data: Any = None,
    frozen_layers: Iterable[str] = (),
    on_unknown: str = "error",
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
        criterion, strategy, monitor, mode, refit_data, frozen_layers, on_unknown: as in `ProgressivePruning`.
        checkpoint: a file to which the state is written after every round. If it exists, the search continues from there.
            With `refit_data`, everything pruned until then is refit at once, so later choices may differ slightly.
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
    wanted = Monitor(monitor, mode)
    check_source(validation_data, "validation_data", function=True)
    strategy = Progressive() if strategy is None else check_strategy(strategy)
    if refit_data is not None:
        check_source(with_any_labels(refit_data), "refit_data")
    file = None if checkpoint is None else check_target(checkpoint)
    checks.instance("verbose", verbose, int | np.bool_, "True or False")
    working = model if refit_data is None else _copied(model)
    search = Search(
        working,
        limits,
        validation_data,
        criterion,
        strategy,
        frozen_layers,
        on_unknown,
        refit_data=refit_data,
        judge=model,
        monitor=wanted,
    )
    if file:
        identity = _identity(model, search, wanted)
        if file.exists():
            search.state = checkpoints.read(file, identity, search.graph)
            if refit_data is not None:
                search.prune(more=True)
    share = 1 / strategy.rounds_needed(search.graph, search.bounds)
    bar = keras.utils.Progbar(100, verbose=int(verbose), stateful_metrics=["macs", "metric"], unit_name="percent")
    while (reached := search.progress()) < 1:
        search.run_round(min(1.0, reached + share))
        if file:
            checkpoints.write(file, identity, search.state)
        if refit_data is not None:
            search.prune(more=True)
        latest = search.state.rounds[-1]
        values = [("macs", latest.macs / search.full.macs), ("metric", latest.before.metric)]
        bar.update(min(100, int(100 * search.progress())), values)
    return search.state.selection


def _identity(model: keras.Model, search: Search, wanted: Monitor) -> dict[str, Any]:
    """Returns everything that a search depends on, JSON-ready. Searches with the same result here are the same."""
    evaluator, compiled = search.evaluator, model.get_compile_config() or {}
    found = {
        "groups": {g.name: g.num_channels for g in search.graph},
        "calls": search.graph.fingerprint,
        "limits": search.bounds,
        "strategy": repr(search.strategy),
        "criteria": [checkpoints.identify(c) for c in search.criteria],
        "monitor": [
            search.measure.text,
            checkpoints.identify(wanted.monitor, "monitor") if callable(wanted.monitor) else "",
        ],
        "weights": checkpoints.digest(model.get_weights()),
        "samples": checkpoints.digest(tree.flatten((evaluator.x, evaluator.y, evaluator.weight))),
        "loss and metrics": str(
            {key: compiled.get(key) for key in ("loss", "loss_weights", "metrics", "weighted_metrics")}
        ),
    }
    if search.refit_on is not None:
        found["refit_data"] = checkpoints.digest(tree.flatten(search.refit_on[0]))
    return found


def _copied(model: keras.Model) -> keras.Model:
    """Returns a copy of a model, compiled with its loss."""
    copy = prune_model(model, build_graph(model, on_unknown="freeze"), Selection())
    if getattr(model, "compiled", False):
        copy.compile(loss=model.loss, loss_weights=(model.get_compile_config() or {}).get("loss_weights"))
    return copy

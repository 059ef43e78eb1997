"""Turns scores, and a ratio or limits, into a Selection."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.channel_graph import ChannelGraph, check_graph
from keras_pcp.graph.channels import check_scores
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.widths import check_widths, least_width, lowest_removed, smallest, width_option
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.support import checks

Scores = Mapping[str, np.ndarray]
Scope = Literal["global", "local", "threshold"]
SCOPES = get_args(Scope)


def select_by_ratio(
    graph: ChannelGraph,
    scores: Scores,
    pruning_ratio: float | Mapping[str, float],
    *,
    scope: Scope = "global",
    min_channels: int | Mapping[str, int] = 1,
    multiple_of: int | Mapping[str, int] = 1,
) -> Selection:
    """Removes a fraction of the channels, lowest scores first.

    Args:
        graph: channel graph.
        scores: {group name: float array (num_channels,)}, higher = keep.
        pruning_ratio: fraction of channels to remove, in [0, 1); with `scope="local"` also {group name: fraction}.
        scope: `"global"` ranks all channels together, after dividing the scores of each group by their mean.
            `"threshold"` ranks all channels together by their scores as they are. `"local"` removes the fraction from
            every group (uniform pruning).
        min_channels: least number of channels of every group; or {group name: number}.
        multiple_of: widths are rounded up to a multiple of this; or {group name: multiple}.

    Returns:
        A `Selection`. It never removes more than `pruning_ratio` says; rounding and `min_channels` can only keep more.

    Raises:
        InvalidArgumentError: an argument is out of range or the scores do not fit the graph.

    Example:
        >>> import numpy as np
        >>> from keras_pcp.graph.channel_graph import ChannelGraph
        >>> from keras_pcp.graph.channels import ChannelGroup
        >>> graph = ChannelGraph("m", {"a": ChannelGroup("a", 4, ())}, (), (), (), ())
        >>> select_by_ratio(graph, {"a": np.array([3., 1., 2., 4.])}, 0.5, scope="local").removed()["a"].tolist()
        [1, 2]
    """
    scores = _checked(graph, scores, scope, min_channels, multiple_of)
    return _by_ratio(graph, scores, pruning_ratio, scope, min_channels, multiple_of)


def _by_ratio(
    graph: ChannelGraph,
    scores: Scores,
    pruning_ratio: float | Mapping[str, float],
    scope: Scope,
    min_channels: int | Mapping[str, int],
    multiple_of: int | Mapping[str, int],
) -> Selection:
    """`select_by_ratio` for scores that fit the graph; channels with score -inf are gone already, and stay so."""
    ratios = pruning_ratio if isinstance(pruning_ratio, Mapping) else dict.fromkeys(graph.groups, pruning_ratio)
    for name, ratio in ratios.items():
        checks.number(f"pruning_ratio of group {graph[name].name!r}", ratio, "[0, 1)")
    if scope == "local":
        counts = {g.name: int(g.num_channels * ratios.get(g.name, 0.0)) for g in graph}
    elif isinstance(pruning_ratio, Mapping):
        raise InvalidArgumentError("a pruning_ratio per group needs scope='local'")
    else:
        counts = _global_counts(graph, scores, pruning_ratio, scope == "global")
    return _with_widths(graph, scores, counts, min_channels, multiple_of)


def _with_widths(
    graph: ChannelGraph,
    scores: Scores,
    counts: Mapping[str, int],
    min_channels: int | Mapping[str, int],
    multiple_of: int | Mapping[str, int],
) -> Selection:
    """Removes so many channels of each group, fewer where widths are rounded."""
    keep = {}
    for group in graph:
        width = max(group.num_channels - counts[group.name], least_width(group, min_channels, multiple_of))
        multiple = width_option(multiple_of, group.name)
        width = min(group.num_channels, -(-width // multiple) * multiple)
        keep[group.name] = lowest_removed(scores[group.name], group.num_channels - width)
    return Selection(keep)


def _global_counts(graph: ChannelGraph, scores: Scores, ratio: float, relative: bool) -> dict[str, int]:
    if not len(graph):
        return {}
    ranked = np.concatenate([scores[g.name] / (_mean_size(scores[g.name]) if relative else 1.0) for g in graph])
    owner = np.repeat(np.arange(len(graph)), [g.num_channels for g in graph])
    gone = owner[np.argsort(ranked, kind="stable")[: int(len(ranked) * ratio)]]
    return {g.name: int(np.count_nonzero(gone == i)) for i, g in enumerate(graph)}


def _mean_size(scores: np.ndarray) -> float:
    left = scores[scores > -np.inf]
    return float(np.mean(np.abs(left))) if left.any() else 1.0


def select_by_cost(
    graph: ChannelGraph,
    scores: Scores,
    *,
    max_macs: float | int | None = None,
    max_params: float | int | None = None,
    max_bytes: float | int | None = None,
    scope: Scope = "global",
    min_channels: int | Mapping[str, int] = 1,
    multiple_of: int | Mapping[str, int] = 1,
) -> Selection:
    """Removes the smallest ratio of channels, as `select_by_ratio` does, at which all limits hold.

    Several groups may lose their next channel at the same ratio, for example groups of 16, 32 and 64 channels. Then the
    first ones in the order of the graph keep it, as far as the limits allow.

    Args:
        graph: channel graph.
        scores: {group name: float array (num_channels,)}, higher = keep.
        max_macs, max_params, max_bytes: a float in (0, 1) is a fraction of the unpruned model, an int is absolute.
        scope: as in `select_by_ratio`.
        min_channels: least number of channels of every group; or {group name: number}.
        multiple_of: widths are rounded up to a multiple of this; or {group name: multiple}.

    Returns:
        A `Selection`.

    Raises:
        LimitError: the limits cannot be reached; the message names the least reachable cost and what is frozen.
        InvalidArgumentError: an argument is out of range.

    Example:
        >>> import keras, keras_pcp
        >>> x = keras.Input((8,))
        >>> model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(16, name="hidden")(x)))
        >>> graph = keras_pcp.build_graph(model)
        >>> scores = keras_pcp.score_channels(model, graph, "l1")
        >>> len(keras_pcp.select_by_cost(graph, scores, max_macs=0.5).removed()["hidden"])
        8
    """
    scores = _checked(graph, scores, scope, min_channels, multiple_of)
    problem = Problem.of(graph, Limits(max_macs, max_params, max_bytes))
    return just_enough(problem, scores, scope=scope, min_channels=min_channels, multiple_of=multiple_of)


def just_enough(
    problem: Problem,
    scores: Scores,
    *,
    scope: Scope = "global",
    min_channels: int | Mapping[str, int] = 1,
    multiple_of: int | Mapping[str, int] = 1,
    shares: Mapping[str, float] | None = None,
) -> Selection:
    """Removes the fewest channels with which the limits of a problem hold: what `select_by_cost` returns.

    Args:
        problem: graph and limits.
        scores: {group name: float array (num_channels,)}, higher = keep; -inf for channels that are gone already.
        scope, min_channels, multiple_of: as in `select_by_cost`.
        shares: {group name: number > 0}. If given, the fraction that a group keeps is proportional to its number, as far
            as it has so many channels; then `scope` must be `"local"`.

    Raises:
        LimitError: the limits cannot be reached.
    """
    graph = problem.graph
    problem.check_reachable(smallest(graph, min_channels, multiple_of))
    least = min(shares.values(), default=1.0) if shares else 1.0

    def select(ratio: float) -> Selection:
        given: float | Mapping[str, float] = ratio
        if shares:
            given = {name: max(0.0, 1 - (1 - ratio) * share / least) for name, share in shares.items()}
        return _by_ratio(graph, scores, given, scope, min_channels, multiple_of)

    low, high = 0.0, float(np.nextafter(1.0, 0.0))
    if problem.holds(select(low)):
        return select(low)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.holds(select(middle)) else (middle, high)
    found, wider = select(high), select(low).keep
    problem.check_reachable(found)  # the channels that stay may cost more than the cheapest ones
    for name, mask in wider.items():
        candidate = Selection({**found.keep, name: mask})
        if not np.array_equal(mask, found.keep[name]) and problem.holds(candidate):
            found = candidate
    return found


def _checked(graph: ChannelGraph, scores: Scores, scope: Scope, min_channels: Any, multiple_of: Any) -> Scores:
    """Returns the scores as float arrays, or raises InvalidArgumentError if an argument is wrong."""
    check_graph(graph)
    checks.choice("scope", scope, SCOPES)
    advice = "pass keras_pcp.score_channels(model, graph)"
    checks.instance("scores", scores, Mapping, "{group name: float array (num_channels,)}", advice)
    check_widths(min_channels, multiple_of, graph)
    return {group.name: check_scores(group, scores.get(group.name), "scores") for group in graph}

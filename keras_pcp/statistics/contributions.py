"""The contribution of each channel of a group to the outputs of the layers that read it, at some output positions.

The output of a layer before its activation is a sum over the channels that it reads (and a bias). The inner products of the
summands, which are small arrays, are enough to know how much of the sum is left without some channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import CONSUME, WeightSlice
from keras_pcp.graph.trace import Step, Trace, replay_calls
from keras_pcp.statistics.layer_inputs import POSITIONS, Window, as_floats, draw, kernel_matrix, patches, window_of
from keras_pcp.support import internals

_BLOCK = 2**24


def contribution_products(
    traced: Trace, graph: ChannelGraph, weights: Sequence[Any], batches: Iterable[Sequence[Any]], seed: int
) -> Mapping[str, np.ndarray]:
    """Computes `Statistics.contributions`.

    Args:
        traced: the trace of the plain model.
        graph: its channel graph.
        weights: the variables that the graph names by their index.
        batches: inputs of the model, one list of arrays for each batch.
        seed: for the draw of positions.
    """
    readers = _readers(traced, graph, weights)
    found = {group.name: np.zeros((group.num_channels,) * 2) for group in graph}
    count, rng = 0, np.random.default_rng(seed)
    for inputs in batches:
        with internals.stateless():
            for number, step in enumerate(replay_calls(traced, inputs)):
                for name, slices in readers.get(number, {}).items():
                    found[name] += _products(step, slices, weights, len(found[name]), rng)
        count += len(inputs[0])
    return {name: products / max(count, 1) for name, products in found.items()}


def _readers(traced: Trace, graph: ChannelGraph, weights: Sequence[Any]) -> dict[int, dict[str, list[WeightSlice]]]:
    """Returns {number of a call: {group that it reads: slices of its kernels}}, without heads that are not delivered."""
    calls: dict[int, list[int]] = {}
    for number, call in enumerate(traced.calls):
        for w in getattr(call.operation, "weights", ()):
            calls.setdefault(id(w), []).append(number)
    found: dict[int, dict[str, list[WeightSlice]]] = {}
    for group in graph:
        for s in (s for s in group.slices_of(CONSUME) if graph.weights[s.weight].layer):
            for number in calls.get(id(weights[s.weight]), ()):
                found.setdefault(number, {}).setdefault(group.name, []).append(s)
    return found


def _products(step: Step, slices: list[WeightSlice], weights: Sequence[Any], channels: int, rng) -> np.ndarray:
    """Returns the inner products of the contributions to one call, summed over samples, as a mean over positions."""
    layer = step.call.operation
    window = window_of(layer, len(step.input.shape))
    if window is None:
        values = _by_removal(step, slices, weights, channels, rng)
        return values.reshape(channels, -1) @ values.reshape(channels, -1).T / values.shape[1]
    chosen = draw(rng, len(step.input), window.space(step.input.shape), POSITIONS)
    channel = np.concatenate([s.channels for s in slices])
    position = np.concatenate([s.positions for s in slices])
    return _by_rows(window, step.input, chosen, as_floats(layer.kernel).astype(float), channel, position, channels)


def _by_rows(
    window: Window,
    x: Any,
    chosen: np.ndarray,
    kernel: np.ndarray,
    channel: np.ndarray,
    position: np.ndarray,
    channels: int,
) -> np.ndarray:
    """Computes the products as sums of elements of (P^T P) * (K K^T), with inputs P and kernel K."""
    taps = np.prod(window.size, dtype=int)
    width = kernel.shape[-2]
    rows = (np.arange(taps)[:, None] * width + position).ravel()
    owner = np.tile(channel, taps)
    order = np.argsort(owner, kind="stable")
    rows, owner = rows[order], owner[order]
    present, starts = np.unique(owner, return_index=True)
    found = np.zeros((channels, channels))
    step = max(1, _BLOCK // len(rows))
    for read, matrix in zip(patches(window, x, chosen), kernel_matrix(window, kernel), strict=True):
        read, matrix = read[:, rows].astype(float), matrix[rows]
        for i in range(0, len(rows), step):
            block = (read[:, i : i + step].T @ read) * (matrix[i : i + step] @ matrix.T)
            sums = np.add.reduceat(block, starts, axis=1)
            np.add.at(found, (owner[i : i + step, None], present), sums)
    return found / chosen.shape[1]


def _by_removal(step: Step, slices: list[WeightSlice], weights: Sequence[Any], channels: int, rng) -> np.ndarray:
    """Returns how much the output of any layer changes without each channel: (channels, positions, ...).

    If the layer is linear in its kernel and has no activation, that is the contribution of the channel.
    """
    values = {s.weight: as_floats(weights[s.weight]) for s in slices}

    def output(gone: int | None) -> np.ndarray:
        changed = {i: value.copy() for i, value in values.items()}
        for s in slices:
            np.moveaxis(changed[s.weight], s.axis, 0)[s.positions[s.channels == gone]] = 0
        with internals.stateless([(weights[i], keras.ops.convert_to_tensor(v)) for i, v in changed.items()]):
            y = as_floats(tree.flatten(step.call.operation(*step.args, **step.kwargs))[0])
        return y.reshape(len(y), -1, y.shape[-1])

    whole = output(None)
    chosen = draw(rng, len(whole), whole.shape[1:2], POSITIONS)
    place = np.arange(len(whole)), chosen.T
    return np.stack([(whole[place].astype(float) - output(c)[place]) for c in range(channels)])

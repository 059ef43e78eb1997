"""Refits the layers that read pruned channels by least squares, so that their outputs are restored as far as possible.

This is the second step of He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, arXiv
1707.06168. From shallow to deep, for each layer that reads a group with removed channels:

1. Draw some positions of its output on each sample.
2. Y: what the layer of the original network gives there. X: what the layer of the pruned network reads there, with all
   layers before it refit.
3. W = argmin ||Y - X W||^2.

Differs from the paper: a ridge penalty on the change of W keeps it near the old weights if there are too few samples. A bias
is fitted, too. The last convolution of a residual block does not make up for the error of the shortcut.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.build import check_fits
from keras_pcp.graph.channel_graph import ChannelGraph, check_selection
from keras_pcp.graph.channels import CONSUME
from keras_pcp.graph.program import program_of
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.trace import Call, Step, Trace, arrange_inputs, replay_calls, tensor_sizes, trace
from keras_pcp.graph.weight_masks import weight_masks
from keras_pcp.statistics.layer_inputs import (
    POSITIONS,
    Window,
    as_floats,
    draw,
    kernel_array,
    kernel_matrix,
    patches,
    penalized,
    window_of,
)
from keras_pcp.support import checks, internals
from keras_pcp.support.changes import all_or_nothing
from keras_pcp.support.data import check_inputs, count_samples, take_samples, with_any_labels
from keras_pcp.support.models import check_model

# Maximum number of samples for the refit, and of bytes that the largest tensor may take for all of them.
REFIT_SAMPLES, _BYTES_AT_ONCE = 2048, 2**30
RIDGE = 0.1
_BATCH = 256  # samples that one call of a layer takes


@dataclass(frozen=True)
class Refitted:
    """What `refit` did.

    Attributes:
        errors: {layer: (before, after)}, in the order of execution: squared error of its outputs before the activation,
            as a share of the squares of the original outputs. Both are equal if no better weights were found.
        left: {layer: why it was not refit, although it reads pruned channels}.
    """

    errors: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]


def refit(
    model: keras.Model,
    pruned: keras.Model,
    graph: ChannelGraph,
    selection: Selection,
    data: Any,
    *,
    samples: int | None = REFIT_SAMPLES,
    ridge: float = RIDGE,
    seed: int = 0,
) -> Refitted:
    """Refits kernels and biases in `pruned`, so that the readers of pruned channels give their old outputs again.

    From shallow to deep, each layer's outputs before its activation are fitted to those of `model`, by least squares on some
    positions of some samples. Only plain convolutions and dense layers that are called once are refit. Layers behind them,
    such as batch normalization, are not changed. No error on the samples rises. If anything fails, nothing is changed.

    Args:
        model: the model before pruning; it is not changed.
        pruned: the result of `prune_model(model, graph, selection)`; or a copy of `model` inside `masked`, which at its end
            restores kernels, but not biases.
        graph: `build_graph(model)`.
        selection: the selection that `pruned` was pruned with.
        data: samples as for `score_channels`, or only an array of inputs; labels are not used.
        samples: maximum number of samples (None: all); 10 positions of each map are used. All samples go through one layer
            after the other, so fewer are used if the largest tensor would take more than 1 GiB.
        ridge: weight of the squared change of a kernel, in units of the mean squared norm of its inputs at a position; above
            0. The more samples there are, the less it matters.
        seed: for the draw of samples and positions.

    Raises:
        InvalidArgumentError: graph, selection or data does not fit, `pruned` is not the pruned `model`, or a layer of one of
            the two gives NaN or infinite values on the data.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> hidden = keras.layers.Dense(3, name="hidden", kernel_initializer="ones")(x)  # three equal channels
        >>> model = keras.Model(x, keras.layers.Dense(1, name="out", kernel_initializer="ones")(hidden))
        >>> graph, one = keras_pcp.build_graph(model), keras_pcp.Selection({"hidden": np.array([True, False, False])})
        >>> small = keras_pcp.prune_model(model, graph, one)
        >>> x = np.random.default_rng(0).normal(size=(32, 4))
        >>> before, after = keras_pcp.refit(model, small, graph, one, (x, x)).errors["out"]
        >>> round(before, 3), after < 1e-4  # two thirds of the output were missing, squared
        (0.444, True)
    """
    check_selection(graph, selection)
    check_fits(model, graph)
    check_model("pruned", pruned)
    ridge, samples = checks.number("ridge", ridge, "(0, inf)"), checks.count("samples", samples, optional=True)
    seed = checks.count("seed", seed, 0)
    if {id(w) for w in model.weights} & {id(w) for w in pruned.weights} or _kinds(model) != _kinds(pruned):
        raise InvalidArgumentError(
            "pruned must be the result of prune_model(model, graph, selection), and share no layers with model"
        )
    x = inputs_at_once(model, data, samples, seed)
    return refit_to(goals_of(model, graph, x, seed, selection), pruned, selection, ridge)


def _kinds(model: keras.Model) -> list[str]:
    return [type(call.operation).__qualname__ for call in program_of(model).trace.calls]


@dataclass(frozen=True, eq=False)
class _Goal:
    """The outputs of a layer of the original network, (positions, outputs), for each batch of samples.

    Attributes:
        targets, chosen: for each batch, the outputs and their positions.
    """

    targets: list[np.ndarray]
    chosen: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Goals:
    """What refits aim at: the outputs of layers of the original network at some positions of some samples.

    Attributes:
        model, graph: the network, and its channel graph.
        x: the samples, as inputs of the network.
        of_calls: for each call of the network, its goal, the reason not to refit it, or None if it reads no channels that
            are pruned.
    """

    model: keras.Model
    graph: ChannelGraph
    x: Any
    of_calls: list[_Goal | str | None]


def goals_of(model: keras.Model, graph: ChannelGraph, x: Any, seed: int, selection: Selection | None = None) -> Goals:
    """Runs a network, and returns the goals of a refit after `selection`; None: of refits after any selection."""
    program, reads_pruned = program_of(model), _readers(model, graph, selection)
    found: list[_Goal | str | None] = []
    times = Counter(id(call.operation) for call in program.trace.calls)
    with internals.stateless():
        for number, steps in enumerate(_in_step(program.trace, x)):
            layer = steps[0].call.operation
            if not reads_pruned(steps[0].call):
                found.append(None)
            elif window_of(layer, 2) is None:
                found.append("it is not a plain convolution or dense layer")
            elif times[id(layer)] > 1:
                found.append("it is called several times")
            else:
                found.append(_goal(steps, np.random.default_rng([seed, number]), program.name_of(layer)))
    return Goals(model, graph, x, found)


def refit_to(goals: Goals, pruned: keras.Model, selection: Selection, ridge: float = RIDGE) -> Refitted:
    """Refits the layers of a pruned network that read pruned channels, see `refit`."""
    weights, small = goals.model.weights, program_of(pruned)
    masks = {id(weights[i]): axes for i, axes in weight_masks(goals.graph, selection).items()}
    reads_pruned = _readers(goals.model, goals.graph, selection)
    calls = program_of(goals.model).trace.calls
    errors, left, values = {}, {}, []
    with internals.stateless():
        for call, goal, steps in zip(calls, goals.of_calls, _in_step(small.trace, goals.x), strict=True):
            if not reads_pruned(call):
                continue
            name = small.name_of(steps[0].call.operation)
            if isinstance(goal, str):
                left[name] = goal
                continue
            assert goal is not None  # the goals are those of this selection, or of any
            errors[name], changed = _refit(goal, _kept(call.operation.kernel, masks), steps, ridge, name)
            for variable, value in changed:
                variable.assign(value)  # in the scope only, for the layers to come
            values += changed
    all_or_nothing(lambda journal: journal.assign(values))
    return Refitted(errors, left)


def inputs_at_once(model: keras.Model, data: Any, samples: int | None, seed: int) -> Any:
    """Draws inputs for a model, as `take_samples` does, but few enough that the largest tensor takes at most 1 GiB."""
    drawn = take_samples(with_any_labels(data), samples, seed)
    check_inputs(model, drawn[0])
    most = _BYTES_AT_ONCE // (4 * max(tensor_sizes(trace(model), drawn[0])))
    return take_samples(drawn, max(1, most), seed)[0]


def _in_step(traced: Trace, x: Any) -> Iterator[tuple[Step, ...]]:
    """Runs a trace on batches of samples: one call for all batches, then the next call.

    So a change of a layer's weights takes effect for all samples, and only tensors that later calls need are in memory.
    """
    starts = range(0, count_samples(x), _BATCH)
    batches = [tree.map_structure(operator.itemgetter(slice(i, i + _BATCH)), x) for i in starts]
    return zip(*(replay_calls(traced, arrange_inputs(traced, batch)) for batch in batches), strict=True)


def _readers(model: keras.Model, graph: ChannelGraph, selection: Selection | None) -> Callable[[Call], bool]:
    """Returns the test whether a call reads channels that a selection removes; None: channels that any selection could."""
    if selection is None:
        read = {s.weight for group in graph for s in group.slices_of(CONSUME)}
    else:
        masks = weight_masks(graph, selection, CONSUME)
        read = {i for i, axes in masks.items() if not all(mask.all() for mask in axes.values())}
    variables = {id(model.weights[i]) for i in read}
    return lambda call: any(id(w) in variables for w in getattr(call.operation, "weights", ()))


def _kept(kernel: Any, masks: Mapping[int, Mapping[int, np.ndarray]]) -> list[np.ndarray]:
    """Returns which inputs and outputs of a layer stay: boolean arrays along the last two axes of its kernel."""
    own, rank = masks.get(id(kernel), {}), len(kernel.shape)
    return [own.get(axis, np.ones(kernel.shape[axis], bool)) for axis in (rank - 2, rank - 1)]


def _window(step: Step) -> Window:
    """Returns where the layer of a call reads; it is a plain convolution or dense layer, as `goals_of` has seen to."""
    window = window_of(step.call.operation, len(step.input.shape))
    assert window is not None
    return window


def _goal(steps: Sequence[Step], rng: np.random.Generator, name: str) -> _Goal:
    """Returns the goal of the refit of a layer."""
    layer, window = steps[0].call.operation, _window(steps[0])
    lengths = [len(step.input) for step in steps]
    drawn = draw(rng, sum(lengths), window.space(steps[0].input.shape), POSITIONS)
    chosen = np.split(drawn, np.cumsum(lengths)[:-1])
    read = (patches(window, step.input, c) for step, c in zip(steps, chosen, strict=True))
    return _Goal([_finite(_outputs(layer, window, r), layer, name, "model").astype(r.dtype) for r in read], chosen)


def _refit(
    goal: _Goal, kept: Sequence[np.ndarray], steps: Sequence[Step], ridge: float, name: str
) -> tuple[tuple, list]:
    """Returns the shares of error before and after, and pairs of a variable of the layer and its new value."""
    layer = steps[0].call.operation
    rows, outputs = _places(layer, name, *kept)
    window = _window(steps[0])
    rows = np.tile(rows, np.prod(window.size, dtype=int))
    sums, energy = _Sums(), np.finfo(float).tiny
    for step, chosen, target in zip(steps, goal.chosen, goal.targets, strict=True):
        read = patches(window, step.input, chosen).astype(float)
        wanted = target[:, outputs]
        error = wanted - _finite(_outputs(layer, window, read), layer, name, "pruned")
        sums.add(read[..., rows], np.moveaxis(error.reshape(len(error), window.groups, -1), 1, 0))
        energy += np.square(wanted, dtype=float).sum()
    change, shift = sums.fit(layer.use_bias, ridge)
    old = kernel_matrix(window, _array(layer.kernel))
    matrix = old.copy()
    matrix[:, rows] += change
    changed = [(layer.kernel, kernel_array(matrix, layer.kernel.shape))]
    if layer.use_bias:
        bias = _array(layer.bias)
        changed.append((layer.bias, bias + shift.ravel()))
    with internals.stateless(changed):  # of the type of the weights
        change = (kernel_matrix(window, _array(layer.kernel)) - old)[:, rows]
        shift = (_array(layer.bias) - bias).reshape(shift.shape) if layer.use_bias else shift
    before, after = float(sums.ee / energy), float(sums.left(change, shift) / energy)
    return ((before, after), changed) if after < before else ((before, before), [])


class _Sums:
    """Sums over positions of a layer's inputs x (groups, positions, rows), of the error e (groups, positions, outputs)
    to make up for, and of their products. A least-squares fit needs only these, whatever the number of positions.
    """

    def __init__(self):
        self.count = 0
        self.x = self.e = self.xx = self.xe = self.ee = np.zeros(())

    def add(self, x: np.ndarray, e: np.ndarray) -> None:
        """Adds some positions."""
        self.count += x.shape[1]
        self.x, self.e = self.x + x.sum(axis=1, keepdims=True), self.e + e.sum(axis=1, keepdims=True)
        turned = x.swapaxes(1, 2)
        self.xx, self.xe, self.ee = self.xx + turned @ x, self.xe + turned @ e, self.ee + np.square(e).sum()

    def fit(self, bias: bool, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Fits the error by the inputs, group by group.

        Returns:
            Change of the kernel's matrix (groups, rows, outputs of a group) and of the bias (groups, 1, outputs of a
            group).
        """
        x, e = self.x / self.count * bias, self.e / self.count * bias
        turned = self.count * x.swapaxes(1, 2)
        try:
            change = np.linalg.solve(penalized(self.xx - turned @ x, self.count, ridge), self.xe - turned @ e)
        except np.linalg.LinAlgError as error:
            raise InvalidArgumentError(f"ridge={ridge!r} is too small for this data; the default is 0.1") from error
        return change, e - x @ change

    def left(self, change: np.ndarray, shift: np.ndarray) -> float:
        """Returns the sum of squares of the error that remains after a change of the kernel's matrix and of the bias."""
        by_kernel = np.sum((self.xx @ change - 2 * self.xe) * change)
        by_bias = np.sum((self.count * shift + 2 * (self.x @ change - self.e)) * shift)
        return max(0.0, self.ee + by_kernel + by_bias)


def _places(layer: Any, name: str, inputs: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which inputs of a layer of the pruned model to fit, and which outputs of the original layer it has.

    In a narrower model, all inputs are fitted; in a masked one, only those that stay.
    """
    shape = layer.kernel.shape
    for size, kept in zip(shape[-2:], (inputs, outputs), strict=True):
        if size not in (len(kept), kept.sum()):
            raise InvalidArgumentError(
                f"layer {name!r} of the pruned model has a kernel of shape {tuple(shape)}, but the selection keeps "
                f"{inputs.sum()} of {len(inputs)} inputs and {outputs.sum()} of {len(outputs)} outputs"
            )
    rows = inputs if shape[-2] == len(inputs) else np.ones(shape[-2], bool)
    return rows, outputs if shape[-1] != len(outputs) else np.ones(len(outputs), bool)


def _outputs(layer: Any, window: Window, read: np.ndarray) -> np.ndarray:
    """Returns a layer's outputs before its activation, (positions, outputs), for given inputs."""
    apart = read @ kernel_matrix(window, _array(layer.kernel))
    found = np.moveaxis(apart, 0, 1).reshape(read.shape[1], -1)
    return found + _array(layer.bias) if layer.use_bias else found


def _finite(outputs: np.ndarray, layer: Any, name: str, which: str) -> np.ndarray:
    """Returns a layer's outputs, or raises InvalidArgumentError if they are NaN or infinite."""
    if not np.isfinite(outputs).all():
        own = (
            "its weights are not finite"
            if not all(np.isfinite(as_floats(w)).all() for w in layer.weights)
            else ("its weights are finite, so check the layers before it and the scale of the data")
        )
        raise InvalidArgumentError(
            f"layer {name!r} of `{which}` gives NaN or infinite values on the data, so nothing was refit: {own}"
        )
    return outputs


def _array(variable: Any) -> np.ndarray:
    return as_floats(variable).astype(float)

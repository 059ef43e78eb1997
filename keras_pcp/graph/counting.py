"""Counts multiply-accumulates of calls whose sizes differ from the trace, and of layers without a rule.

A layer without a rule keeps its channels. Its cost is known if Keras fixes how its weights are used, as for recurrent layers
and wrappers. For all others the cost is unknown, never 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_pcp.graph.rules import CallSite, Shape, find_rule, spatial_size
from keras_pcp.graph.sizes import Sized, as_traced, sized_calls
from keras_pcp.graph.trace import trace
from keras_pcp.support import internals

L = keras.layers
Count = Callable[[CallSite], None]
_COUNTS: dict[type[keras.Layer], Count] = {}


class CostsOnly:
    """A recorder that passes on only costs, as `times` calls of the layer of `site`; it treats channels as fixed."""

    def __init__(self, site: CallSite, times: float = 1):
        self.site, self.times = site, times

    def produce(self, site: CallSite, weights: Sequence[tuple[Any, int, str]], repeat: int) -> np.ndarray:
        variable, axis, _ = weights[0]
        return np.zeros(variable.shape[axis], np.int64)

    def constants(self, site: CallSite, size: int) -> np.ndarray:
        return np.zeros(size, np.int64)

    def macs(self, site: CallSite, variable: Any, uses: float) -> None:
        self.site.recorder.macs(self.site, variable, uses * self.times if uses else 0)  # NaN * 0 is NaN

    def macs_product(self, site: CallSite, factor: float, variable: Any, axes: Sequence[int]) -> None:
        self.site.recorder.macs_product(self.site, factor * self.times, variable, axes)

    def ignored(self, *args: Any) -> None:
        """Ignores what a rule says about channels."""

    bind = width = tie = freeze = mark_inexact = independent = ignored


def count(site: CallSite, sized: Sized | None = None) -> None:
    """Records the cost of a call, with other sizes if given; leaves out weights whose use is unknown."""
    site = replace(site, recorder=CostsOnly(site))
    _count(site if sized is None else _with_sizes(site, sized))


def _count(site: CallSite) -> None:
    found = find_rule(site.operation) or _find_count(site.operation)
    nested = isinstance(site.operation, keras.Model) and internals.functional_of(site.operation)
    if nested:
        _count_model(site)
    elif found is not None:
        try:
            found(site)
        except Exception:  # an unknown function, or a rule that only suits the layer alone
            pass  # a cost that was not recorded stays unknown


def _with_sizes(site: CallSite, sized: Sized) -> CallSite:
    inputs, outputs = (tuple(tuple(t.shape) for t in tensors) for tensors in (sized.inputs, sized.outputs))
    return replace(
        site,
        input_shapes=inputs,
        output_shapes=outputs,
        args=sized.args,
        kwargs=sized.kwargs,
        tensors=sized.inputs,
    )


def _find_count(operation: Any) -> Count | None:
    cls = type(operation)
    base: type[keras.Layer] | None = next((base for base in cls.__mro__ if base in _COUNTS), None)
    return _COUNTS[base] if base is not None and cls.call is base.call else None


def _counts(*names: str) -> Callable[[Count], Count]:
    """Registers how to count Keras layers, if this version of Keras has them."""

    def register(function: Count) -> Count:
        _COUNTS.update({getattr(L, name): function for name in names if hasattr(L, name)})
        return function

    return register


def _count_model(site: CallSite) -> None:
    traced = trace(site.operation)
    sized = sized_calls(traced, site.tensors)
    for number, call in enumerate(traced.calls):
        if call.operation is not None:
            inner = replace(
                site, operation=call.operation, layer=call.operation.name, inputs=(None,) * len(call.inputs)
            )
            _count(_with_sizes(inner, sized.get(number) or as_traced(traced, call)))


def _count_inner(site: CallSite, layer: Any, shape: Shape, times: float = 1) -> None:
    """Counts `times` calls of an inner layer of the called layer, on a tensor of this shape."""
    tensor = keras.KerasTensor(shape, site.tensors[0].dtype)
    try:
        outputs = tuple(tree.flatten(layer.compute_output_spec(tensor)))
    except Exception:  # a custom layer may raise anything; its cost stays unknown
        return
    inner = replace(site, recorder=CostsOnly(site, times), operation=layer, layer=layer.name, inputs=(None,))
    _count(_with_sizes(inner, Sized((tensor,), {}, (tensor,), outputs)))


def _or_nan(size: int | None) -> float:
    return math.nan if size is None else size


@_counts("TimeDistributed")
def _time_distributed(site: CallSite) -> None:
    batch, steps, *rest = site.input_shapes[0]
    _count_inner(site, site.operation.layer, (batch, *rest), _or_nan(steps))


@_counts("Bidirectional")
def _bidirectional(site: CallSite) -> None:
    for layer in (site.operation.forward_layer, site.operation.backward_layer):
        _count_inner(site, layer, site.input_shapes[0])


@_counts("SpectralNormalization")
def _spectral_normalization(site: CallSite) -> None:
    _count_inner(site, site.operation.layer, site.input_shapes[0])
    site.macs(site.operation.vector_u, 0)  # used only in training


@_counts("SimpleRNN", "LSTM", "GRU", "RNN")
def _recurrent(site: CallSite) -> None:
    _count_cell(site, site.operation.cell, _or_nan(site.input_shapes[0][1]))
    _pass_states(site)


@_counts("SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells")
def _one_step(site: CallSite) -> None:
    _count_cell(site, site.operation, 1)


def _count_cell(site: CallSite, cell: Any, steps: float) -> None:
    """Counts the product of input and kernel, and of state and recurrent kernel, for each step and all gates."""
    if type(cell) is L.StackedRNNCells:
        for one in cell.cells:
            _count_cell(site, one, steps)
    elif _find_count(cell) is _one_step:
        site.macs(cell.kernel, steps)
        site.macs(cell.recurrent_kernel, steps)
        site.macs(getattr(cell, "bias", None), 0)  # that of a GRU has two rows


def _pass_states(site: CallSite) -> None:
    """Counts 0 for the state of a stateful layer, which is a weight but not a kernel."""
    own = {id(w) for w in site.operation.weights}
    for state in tree.flatten(site.operation.states or ()):
        if id(state) in own:
            site.macs(state, 0)


@_counts("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
def _convolutional_recurrent(site: CallSite) -> None:
    """Counts for each step the convolution of the input, with strides, and of the state, which has the output's size."""
    layer, (_, steps, *_), shape = site.operation, site.input_shapes[0], site.output_shapes[0]
    shape = shape[2:] if layer.return_sequences else shape[1:]
    positions = spatial_size((None, *(shape[1:] if layer.data_format == "channels_first" else shape[:-1]), None))
    for kernel in (layer.cell.kernel, layer.cell.recurrent_kernel):
        site.macs(kernel, positions * _or_nan(steps))
    _pass_states(site)


@_counts("ReversibleEmbedding")
def _reversible_embedding(site: CallSite) -> None:
    """Counts 0 for looking up rows, or the product with all of them."""
    layer = site.operation
    separate = getattr(layer, "reverse_embeddings", None)
    reverse = spatial_size(site.input_shapes[0]) if site.argument(1, "reverse") else 0
    site.macs(layer.embeddings, 0 if separate is not None else reverse)
    if separate is not None:
        site.macs(separate, reverse)

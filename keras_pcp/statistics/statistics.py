"""Statistics of a model that criteria use. Each is computed once, at first use."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import CONSUME, FOLLOW, PRODUCE
from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import Trace, arrange_inputs, replay
from keras_pcp.statistics.contributions import contribution_products
from keras_pcp.support import internals
from keras_pcp.support.data import check_inputs, count_samples, take_samples

SAMPLES = 256  # maximum number of samples; gate gradients take a backward pass for each
_BATCH = 32
_READ_SAMPLES = 64
_FEATURE_BYTES = 2**29


def needs_data(criterion: Any) -> Any:
    """Marks a criterion that uses gradients or features, so that it is rejected at once if there is no data."""
    criterion.needs_data = True
    return criterion


@dataclass(frozen=True, eq=False)
class Statistics:
    """What criteria can use. The model is not changed: neither weights nor metrics nor moving statistics.

    Args:
        model: the model that `graph` was built from; gradients need it to be compiled.
        graph: its channel graph.
        data: labelled samples: (x, y), (x, y, sample_weight) or a dataset of such batches; needed for everything but
            `weights`, `present` and `freed_elements`. At most 256 samples are used, drawn by `seed`.
        seed: for the draw, and for random criteria.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> model = keras.Model(x, keras.layers.Dense(1)(keras.layers.Dense(3, name="hidden")(x)))
        >>> model.compile("sgd", "mse")
        >>> statistics = Statistics(model, keras_pcp.build_graph(model), (np.ones((5, 4)), np.ones((5, 1))))
        >>> statistics.gate_gradients["hidden"].shape
        (5, 3)
    """

    model: keras.Model
    graph: ChannelGraph
    data: Any = None
    seed: int = 0

    @cached_property
    def weights(self) -> list[np.ndarray]:
        """The values of `model.weights`, in that order; bfloat16 as float32."""
        return [np.asarray(w, "float32") if w.dtype == "bfloat16" else w.numpy() for w in self.model.weights]

    @cached_property
    def present(self) -> Mapping[str, np.ndarray]:
        """{group: bool array (num_channels,)}: False for channels that all their readers multiply by 0.

        These are the channels that `masked` has removed. If that would be all channels of a group, all count as present.
        """
        found = {}
        for group in self.graph:
            read = np.zeros(group.num_channels, bool)
            for s in group.slices_of(CONSUME):
                rows = np.moveaxis(self.weights[s.weight], s.axis, 0)[s.positions]
                read[s.channels[rows.reshape(len(rows), -1).any(axis=1)]] = True
            found[group.name] = read if read.any() else ~read
        return found

    @cached_property
    def samples(self) -> tuple[Any, Any, Any]:
        """(x, y, sample_weight or None): the samples that are used."""
        samples = take_samples(self.data, SAMPLES, self.seed)
        check_inputs(self.model, samples[0])
        return samples

    @cached_property
    def sample_weights(self) -> np.ndarray:
        """Float array (samples,): the weight of each sample; 1 without weights; the largest if each output has its own."""
        x, y, weight = self.samples
        found = [np.abs(np.asarray(w, float)) for w in tree.flatten(weight) if w is not None]
        count = count_samples((x, y))
        return np.max([w.reshape(count, -1).max(axis=1) for w in found], axis=0) if found else np.ones(count)

    @cached_property
    def gradients(self) -> list[np.ndarray | None]:
        """The mean gradient of the loss for each weight over the samples, without regularization; None if there is none."""
        return self._mean_of_gradients(lambda g: g, _BATCH, self.samples)

    @cached_property
    def squared_gradients(self) -> list[np.ndarray | None]:
        """The weighted mean over the samples of the squared gradient of each sample's loss; one backward pass per sample."""
        return self._mean_of_gradients(tf.square, 1, self._unweighted, self.sample_weights)

    @cached_property
    def gate_gradients(self) -> Mapping[str, np.ndarray]:
        """{group: float array (samples, num_channels)}: derivative of each sample's loss with respect to a channel's gate.

        The gate has value 1 and multiplies the channel wherever a kernel reads it. Its derivative is the sum of
        w * dL/dw over all kernel rows that read the channel, whatever lies between. Takes one backward pass per sample. The
        losses are not multiplied by `sample_weights`, because a criterion may square the derivatives.
        """
        slices = {(s.weight, s.axis) for group in self.graph for s in group.slices_of(CONSUME)}

        def reduced(gradients, values):
            return {
                (weight, axis): tf.reduce_sum(
                    tf.cast(values[weight] * gradients[weight], "float32"),
                    [a for a in range(len(values[weight].shape)) if a != axis % len(values[weight].shape)],
                )
                for weight, axis in slices
                if gradients[weight] is not None
            }

        rows = [r for _, r in self._each_batch(reduced, 1, self._unweighted)]
        found = {g.name: np.zeros((len(rows), g.num_channels)) for g in self.graph}
        for group in self.graph:
            for s in group.slices_of(CONSUME):
                for gates, row in zip(found[group.name], rows, strict=True):
                    if (s.weight, s.axis) in row:
                        np.add.at(gates, s.channels, row[s.weight, s.axis][s.positions])
        return found

    @cached_property
    def features(self) -> Mapping[str, np.ndarray]:
        """{group: float array (samples, ..., num_channels)}: values of the channels, with the axes of their tensor.

        The values come from the last tensor with the most positions, among those that hold all channels of the group, after
        as many of its makers as possible, and nothing else, if possible: after activation and sums, before pooling and
        flattening. If the tensor holds a channel several times, these count as more samples. Fewer samples are used if all
        groups together would take more than 512 MB.

        Raises:
            InvalidArgumentError: (when a group is looked up) no tensor holds all channels of the group, equally often.
        """
        places = self._feature_places()
        tensors = {place.tensor for place in places.values()}
        x, _, _ = self.samples
        parts: dict[int, list[np.ndarray]] = {index: [] for index in tensors}
        size = 0
        for start in range(0, count_samples(x), _BATCH):
            batch = tree.map_structure(lambda a, start=start: a[start : start + _BATCH], x)
            with internals.stateless():
                for index, value in replay(self._trace, arrange_inputs(self._trace, batch)):
                    if index in tensors:
                        parts[index].append(np.asarray(value, "float32"))
                        size += parts[index][-1].nbytes
            if size >= _FEATURE_BYTES:
                break
        arrays = {index: np.concatenate(found) for index, found in parts.items()}
        return _Features({name: _by_channel(arrays[place.tensor], place) for name, place in places.items()})

    @cached_property
    def contributions(self) -> Mapping[str, np.ndarray]:
        """{group: float array (num_channels, num_channels)}: inner products of two channels' contributions to their readers.

        All readers of the group take part, at 10 output positions of each map, drawn by `seed`. The contribution of a
        channel to a convolution or dense layer is the part of the sum, before the activation, that comes from its rows of
        the kernel. For other layers, it is the change of the output without the channel. The products are summed over
        output channels and readers, and averaged over samples and positions. At most 64 samples are used.
        """
        x, _, _ = self.samples
        count = min(count_samples(x), _READ_SAMPLES)
        batches = (
            arrange_inputs(self._trace, tree.map_structure(lambda a, i=i: a[i : min(i + _BATCH, count)], x))
            for i in range(0, count, _BATCH)
        )
        return contribution_products(self._trace, self.graph, self.model.weights, batches, self.seed)

    @cached_property
    def freed_elements(self) -> Mapping[str, np.ndarray]:
        """{group: float array (num_channels,)}: elements that the outputs of a channel's makers lose without the channel.

        Counted for one sample, and for each channel separately; NaN if the size of an output is unknown.
        """
        found = {group.name: np.zeros(group.num_channels) for group in self.graph}
        makers = {
            group.name: {
                id(self.model.weights[s.weight])
                for s in (*group.slices_of(PRODUCE), *group.slices_of(FOLLOW, "depthwise"))
            }
            for group in self.graph
        }
        made_by = {i: call.operation for call in self._trace.calls for i in call.outputs}
        for width in (w for w in self.graph.widths if w.owner == "tensor"):
            weights = {id(w) for w in getattr(made_by.get(width.index), "weights", ())}
            positions = _positions(self._trace.tensors[width.index].shape, width.path[0])
            for name, channels in width.extent.pieces:
                if weights & makers[name]:
                    np.add.at(found[name], channels, np.nan if positions == math.inf else positions)
        return found

    @cached_property
    def _trace(self) -> Trace:
        return program_of(self.model).trace

    def _feature_places(self) -> dict[str, "_Place"]:
        """Finds for each group where its features are."""
        makers = self._makers_before()
        best: dict[str, tuple[tuple, _Place]] = {}
        for width in (w for w in self.graph.widths if w.owner == "tensor"):
            for (name, channels), along in zip(width.extent.pieces, width.positions, strict=True):
                counts = np.bincount(channels, minlength=self.graph[name].num_channels)
                count = len(makers.get((width.index, name), ()))
                if count == 0 or counts.min() == 0 or counts.min() != counts.max():
                    continue
                positions = _positions(self._trace.tensors[width.index].shape, width.path[0])
                rank = count, len(channels) == width.extent.size, positions, width.index
                if name not in best or rank >= best[name][0]:
                    best[name] = rank, _Place(width.index, width.path[0], along, channels)
        return {name: place for name, (_, place) in best.items()}

    def _makers_before(self) -> dict[tuple[int, str], set[int]]:
        """Returns {(tensor, group it holds channels of): makers that the values come from}.

        There are none where the channels have only been added by padding.
        """
        groups = {w.index: [name for name, _ in w.extent.pieces] for w in self.graph.widths if w.owner == "tensor"}
        kernels = {g.name: {id(self.model.weights[s.weight]) for s in g.slices_of(PRODUCE)} for g in self.graph}
        found: dict[tuple[int, str], set[int]] = {}
        for call in self._trace.calls:
            own = {id(w) for w in getattr(call.operation, "weights", ())}
            for tensor in call.outputs:
                for name in groups.get(tensor, ()):
                    before = [found.get((i, name), set()) for i in call.inputs]
                    found[tensor, name] = set().union(own & kernels[name], *before)
        return found

    @cached_property
    def _unweighted(self) -> tuple[Any, Any, Any]:
        """The samples with weights of at most 1, which keep only the relation of the outputs of one sample."""
        x, y, weight = self.samples
        most = np.maximum(self.sample_weights, np.finfo("float32").tiny)

        def divided(w):
            return None if w is None else (w / most.reshape(-1, *[1] * (np.ndim(w) - 1))).astype("float32")

        return x, y, tree.map_structure(divided, weight)

    def _mean_of_gradients(
        self, function: Callable, size: int, samples: tuple, weights: np.ndarray | None = None
    ) -> list[np.ndarray | None]:
        def reduced(gradients, values):
            return [None if g is None else tf.cast(function(g), "float32") for g in gradients]

        total: list[Any] = []
        count = count_samples(samples[:2])
        factors = np.ones(count) if weights is None else weights
        for rows, found in self._each_batch(reduced, size, samples):
            weighted = [None if g is None else factors[rows].sum() * g for g in found]
            total = [a if b is None else a + b for a, b in zip(total, weighted, strict=True)] if total else weighted
        return [None if t is None else t / count for t in total]

    def _each_batch(self, reduced: Callable, size: int, samples: tuple) -> Iterator[tuple[slice, Any]]:
        """Yields (slice of the samples, `reduced(gradients, values)` as arrays) of one batch after the other."""
        x, y, weight = samples
        count = count_samples((x, y))

        def batch(start):
            end = start + size
            return tf.nest.map_structure(
                lambda a: None if a is None else tf.convert_to_tensor(a[start:end]), (x, y, weight)
            )

        compute = _gradient_function(self.model, reduced, batch(0))
        for start in range(0, count, size):
            found = compute(*batch(start))
            yield (
                slice(start, min(start + size, count)),
                tf.nest.map_structure(lambda t: None if t is None else t.numpy(), found),
            )


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the channels of a group lie: the number of a tensor, an axis, positions along it, and their channels."""

    tensor: int
    axis: int
    positions: np.ndarray
    channels: np.ndarray


class _Features(dict):
    def __missing__(self, name: str) -> np.ndarray:
        raise InvalidArgumentError(
            f"no tensor of the model holds all channels of group {name!r}, equally often, so their features cannot be "
            "compared; use a criterion that needs weights or gradients, such as 'l1' or 'taylor', or freeze the layer"
        )


def _gradient_function(model: keras.Model, reduced: Callable, batch: tuple) -> Callable:
    if not getattr(model, "compiled", False):
        raise InvalidArgumentError(
            f"gradients need a loss, but model {model.name!r} is not compiled; call model.compile(loss=...) first"
        )
    with _stateless(model.weights, [w.value for w in model.weights]):  # builds the loss, impossible while tracing
        predicted = model(batch[0], training=False)
        try:
            internals.loss_of(model, batch[0], batch[1], predicted, batch[2])
        except Exception as error:  # a loss may raise anything on labels that do not suit it
            found, expected = (tf.nest.map_structure(lambda a: tuple(a.shape), v) for v in (batch[1], predicted))
            raise InvalidArgumentError(
                f"the loss of model {model.name!r} cannot be computed on data (labels {found}, outputs {expected}): {error}"
            ) from error

    @tf.function(autograph=False)
    def compute(x, y, sample_weight):
        values = [tf.convert_to_tensor(w.value) for w in model.weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            with _stateless(model.weights, values):
                predicted = model(x, training=False)
            # Penalties on weights, which Keras adds to the loss, must not pass on a gradient.
            with _stateless(model.weights, [tf.stop_gradient(v) for v in values]):
                loss = internals.loss_of(model, x, y, predicted, sample_weight)
        watched = [i for i, v in enumerate(values) if v.dtype.is_floating]
        found = dict(zip(watched, tape.gradient(loss, [values[i] for i in watched]), strict=True))
        gradients = [found.get(i) for i in range(len(values))]
        return reduced([None if g is None else tf.convert_to_tensor(g) for g in gradients], values)

    return compute.get_concrete_function(*tf.nest.map_structure(_any_number_of, batch))


def _any_number_of(array: Any) -> tf.TensorSpec | None:
    return None if array is None else tf.TensorSpec((None, *array.shape[1:]), array.dtype)


def _stateless(variables: list, values: list) -> AbstractContextManager[keras.StatelessScope]:
    """Returns a scope in which variables have given values and nothing is updated."""
    return internals.stateless(list(zip(variables, values, strict=True)))


def _positions(shape: tuple, axis: int) -> float:
    """Returns the number of positions of one sample along all other axes; infinity if it is unknown."""
    return math.prod(math.inf if d is None else d for a, d in enumerate(shape) if a not in (0, axis))


def _by_channel(value: np.ndarray, place: _Place) -> np.ndarray:
    """Takes the channels, sorted, along the last axis; moves copies of a channel to the first axis."""
    order = np.argsort(place.channels, kind="stable")
    value = np.moveaxis(value, place.axis, -1)[..., place.positions[order]]
    copies = len(order) // len(np.unique(place.channels))
    value = value.reshape(*value.shape[:-1], -1, copies)
    return np.moveaxis(value, -1, 0).reshape(-1, *value.shape[1:-1])

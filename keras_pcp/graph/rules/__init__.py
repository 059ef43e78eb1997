"""What each layer or raw operation does to channel labels: the registry, and what a rule may say.

A rule is a function of one `CallSite`. It says what the call produces, follows and consumes, and returns the labels of
the output (a `Labels`, None, or a list for several outputs). Raw `keras.ops` operations are classes without a public
name, so they are registered by class name.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
from keras import tree

from keras_pcp.errors import InvalidArgumentError, UnsupportedModelError
from keras_pcp.graph.labels import Labels
from keras_pcp.support import checks

Outputs = Labels | None | Sequence[Labels | None]
Rule = Callable[["CallSite"], Outputs]
Shape = tuple[int | None, ...]

_LAYER_RULES: dict[type, Rule] = {}
_OPERATION_RULES: dict[str, Rule] = {}


class Recorder(Protocol):
    """Receives what a rule says, through its call site (the graph builder implements it)."""

    def produce(self, site: "CallSite", weights: Sequence[tuple[Any, int, str]], repeat: int) -> np.ndarray:
        """Makes a new label for every position of an axis of some weights."""

    def constants(self, site: "CallSite", size: int) -> np.ndarray:
        """Makes labels for positions that hold constants."""

    def bind(self, site: "CallSite", variable: Any, axis: int, ids: np.ndarray, role: str, part: str) -> None:
        """Says which labels the positions of a weight's axis belong to."""

    def width(self, site: "CallSite", owner: str, path: tuple, size: int, ids: np.ndarray) -> None:
        """Says that an integer has to follow some labels."""

    def independent(self, site: "CallSite", variable: Any) -> None:
        """Says that a weight does not depend on channels."""

    def macs(self, site: "CallSite", variable: Any, uses: float) -> None:
        """Says how many multiply-accumulates each element of a weight takes part in."""

    def macs_product(self, site: "CallSite", factor: float, variable: Any, axes: Sequence[int]) -> None:
        """Counts `factor` times the product of the extents of some axes of a weight."""

    def tie(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        """Says that labels can only be removed together."""

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        """Says that labels cannot be removed."""

    def mark_inexact(self, ids: np.ndarray, reason: str) -> None:
        """Says that statistics mix labels."""


@dataclass(frozen=True, eq=False)
class CallSite:
    """One call of a layer or operation, as a rule sees it.

    Attributes:
        operation: the layer or raw operation.
        layer: its name in the graph; it can differ from `operation.name` where that is not unique in the opened model.
        inputs: labels of the input tensors, in the order of the call's arguments; None = no labels.
        input_shapes, output_shapes: shapes with the batch axis; unknown sizes are None. In a nested model that was made for
            any size, a rule runs twice: for the channels, and again for the cost, with the sizes of the call.
        args, kwargs: the call's arguments (KerasTensors and constants).
        tensors: the input KerasTensors.
    """

    recorder: Recorder
    operation: Any
    layer: str
    index: int
    inputs: tuple[Labels | None, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    args: tuple
    kwargs: dict
    tensors: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Name and class of the operation, for messages."""
        return f"{self.layer!r} ({type(self.operation).__name__})"

    def produce(self, *weights: tuple[Any, int, str], repeat: int = 1) -> Labels:
        """Creates the output channels. `weights` are (variable or None, axis, part); the first gives the number of channels.

        With `repeat` = r, the axis holds the same channels r times, one run after the other (grouped convolution).
        """
        ids = self.recorder.produce(self, [w for w in weights if w[0] is not None], repeat)
        return Labels(len(self.output_shapes[0]) - 1, ids)

    def constants(self, size: int) -> np.ndarray:
        """Returns labels of positions that hold constants, as many as a setting of the operation says.

        Such a channel goes with those that it is tied with, or stays.
        """
        return self.recorder.constants(self, size)

    def follow(self, variable: Any, axis: int, ids: np.ndarray | None, part: str) -> None:
        """Says that position i along `axis` belongs to channel `ids[i]` and affects only that channel."""
        if variable is not None and ids is not None:
            self.recorder.bind(self, variable, axis, ids, "follow", part)
        elif variable is not None:
            self.independent(variable)

    def consume(self, variable: Any, axis: int, ids: np.ndarray | None) -> None:
        """Says that position i along `axis` multiplies what is read from channel `ids[i]`."""
        if ids is not None:
            self.recorder.bind(self, variable, axis, ids, "consume", "kernel")
        else:
            self.independent(variable)

    def independent(self, variable: Any) -> None:
        """Says that a weight stays as it is, whatever channels are removed. (Weights with one element always do.)

        A rule has to account for every weight of its layer, with `produce`, `follow`, `consume` or this method.
        """
        if variable is not None:
            self.recorder.independent(self, variable)

    def width(self, path: str | tuple, ids: np.ndarray | None, size: int | None = None, owner="operation") -> None:
        """Says that an attribute (or, with owner "argument", a call argument) is the number of positions in `ids`."""
        if ids is not None:
            path = (path,) if isinstance(path, str) else path
            self.recorder.width(self, owner, path, len(ids) if size is None else size, ids)

    def macs(self, variable: Any, uses: float) -> None:
        """Says that each element of `variable` takes part in `uses` multiply-accumulates per sample.

        If a rule does not say this of a weight with several axes, the cost of the weight is unknown. 0 uses is an answer,
        too, for example for a table in which rows are looked up.
        """
        if variable is not None:
            self.recorder.macs(self, variable, uses)

    def macs_product(self, factor: float, variable: Any, axes: Sequence[int]) -> None:
        """Says that the call needs `factor` times the product of some axis lengths of `variable` as MACs per sample."""
        self.recorder.macs_product(self, factor, variable, axes)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Couples channels a[i] and b[i]: both stay or both go."""
        self.recorder.tie(a, b, f"coupled by {self.name} with channels that cannot be removed")

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Says that these channels cannot be removed, and why; `reason` continues a sentence that begins with "it"."""
        if labels is not None:
            self.recorder.freeze(labels.ids, f"{self.name} {reason}")

    def mark_inexact(self, labels: Labels | None) -> None:
        """Says that the operation mixes channels statistically, so a pruned model differs from a masked one."""
        if labels is not None:
            self.recorder.mark_inexact(labels.ids, self.name)

    def channels(self, labels: Labels | None, axis: int = -1) -> np.ndarray | None:
        """Returns the ids along `axis` of the first input; labels along another axis are frozen."""
        if labels is None:
            return None
        if labels.axis != axis % len(self.input_shapes[0]):
            self.freeze(labels, f"needs them on axis {axis}, but they are on axis {labels.axis}")
            return None
        return labels.ids

    def channels_last(self, labels: Labels | None) -> np.ndarray | None:
        """Returns the ids along the last axis; freezes the channels of an operation that is set to channels_first."""
        if getattr(self.operation, "data_format", None) == "channels_first":
            self.freeze(labels, "uses channels_first")
            return None
        return self.channels(labels)

    def axes(self, axis: int | Sequence[int] | None) -> list[int]:
        """Returns axes of the first input, counted from 0; None means all of them."""
        rank = len(self.input_shapes[0])
        return list(range(rank)) if axis is None else [int(a) % rank for a in np.atleast_1d(axis)]

    def argument(self, place: int, name: str) -> Any:
        """Returns an argument of the call, passed by position or by name; None if it was not passed."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name)

    def labels_of(self, value: Any) -> Labels | None:
        """Returns the labels of an argument; a constant has none."""
        return next((x for t, x in zip(self.tensors, self.inputs, strict=True) if t is value), None)

    def operands(self) -> list[tuple[Labels | None, Shape]]:
        """Returns labels and shapes of all arguments, constants included."""
        given = [v for v in tree.flatten((self.args, self.kwargs)) if v is not None]
        return [(self.labels_of(v), tuple(np.shape(v))) for v in given]

    def keep_some(self, ids: np.ndarray, count: int) -> np.ndarray:
        """Freezes the first `count` of some channels: without them, the operation would become a different one."""
        self.recorder.freeze(ids[:count], f"{self.name} needs at least {count} of the channels it takes together")
        return ids

    def tie_runs(self, ids: np.ndarray, runs: int) -> np.ndarray:
        """Ties `runs` runs of ids of equal length, one after the other, and returns the first one."""
        table = ids.reshape(runs, -1)
        for row in table[1:]:
            self.tie(table[0], row)
        return table[0]


def register_rule(*layer_classes: type, replace: bool = False) -> Callable[[Rule], Rule]:
    """Registers the channel rule of Keras layer classes, custom ones included.

    A subclass uses the rule of its parent only if it overrides neither `call` nor `build`; otherwise it needs its own rule.

    A rule accounts for every weight of the layer:

    - `site.follow(weight, axis, ids, part)` for a weight with a value for each channel;
    - `site.consume(weight, axis, ids)` for a kernel that reads channels;
    - `site.produce((weight, axis, part))` for a kernel that makes channels;
    - `site.independent(weight)` for a weight that stays as it is;
    - `site.macs(weight, uses)` for every weight with several axes;
    - `site.width(attribute, ids)` for a number in the layer's config that is a width.

    If a rule leaves out a weight, building a graph raises an error. `keras_pcp.testing.check_rule` tries a rule on a tiny
    model.

    Args:
        *layer_classes: classes of Keras layers.
        replace: True to replace a rule that a class already has.

    Raises:
        InvalidArgumentError: something else is given, or a class has a rule and `replace` is False.

    Example:
        >>> import keras, keras_pcp
        >>> class Doubled(keras.layers.Layer):
        ...     def call(self, x):
        ...         return 2 * x
        >>> @keras_pcp.register_rule(Doubled)
        ... def doubled(site):
        ...     return site.inputs[0]          # element-wise, no weights: the channels pass through
    """

    if not layer_classes:
        raise InvalidArgumentError("register_rule needs the classes of layers: @register_rule(MyLayer)")
    for cls in layer_classes:
        if not (isinstance(cls, type) and issubclass(cls, keras.Operation)):
            raise InvalidArgumentError(f"register_rule takes classes of Keras layers, got {checks.shown(cls)}")
        if cls in _LAYER_RULES and not checks.flag("replace", replace):
            raise InvalidArgumentError(
                f"{cls.__name__} has a rule already, {_LAYER_RULES[cls].__qualname__} of {_LAYER_RULES[cls].__module__}; "
                "pass replace=True to replace it"
            )

    def register(rule: Rule) -> Rule:
        checks.function("the rule", rule, "a function of one CallSite", takes=1)
        _LAYER_RULES.update(dict.fromkeys(layer_classes, rule))
        return rule

    return register


def register_operation(*class_names: str) -> Callable[[Rule], Rule]:
    """Registers the channel rule of operations that have no public class, by name.

    A class name alone means a raw `keras.ops` operation. A name with its module, such as
    `"keras.src.applications.convnext.LayerScale"`, means that class, without importing it here.
    """

    def register(rule: Rule) -> Rule:
        _OPERATION_RULES.update(dict.fromkeys(class_names, rule))
        return rule

    return register


def labels_of_outputs(site: CallSite, outputs: Outputs) -> Sequence[Labels | None]:
    """Returns the result of a rule as one entry for each output of the call.

    Raises:
        UnsupportedModelError: the rule returned something else than labels that fit the outputs.
    """
    shapes = site.output_shapes
    listed = [outputs] if len(shapes) == 1 and (outputs is None or isinstance(outputs, Labels)) else outputs
    if not isinstance(listed, list | tuple) or not all(v is None or isinstance(v, Labels) for v in listed):
        raise UnsupportedModelError(
            f"the rule of layer {site.name} must return a Labels or None, or a list of them for several outputs; got "
            f"{checks.shown(outputs)}"
        )
    if len(listed) != len(shapes):
        raise UnsupportedModelError(
            f"the rule of layer {site.name} returned {len(listed)} labels, but the layer has {len(shapes)} outputs"
        )
    for labels, shape in zip(listed, shapes, strict=True):
        if labels is not None and not _are_labels(labels, shape):
            raise UnsupportedModelError(
                f"the rule of layer {site.name} returned {checks.shown(labels)} for an output of shape {shape}; its axis "
                "must be one of them, counted from 0, and its ids whole numbers, one for each position along it"
            )
    return listed


def _are_labels(labels: Labels, shape: Shape) -> bool:
    axis, ids = labels.axis, labels.ids
    whole = isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"
    return whole and isinstance(axis, int | np.integer) and 0 <= axis < len(shape) and shape[axis] == len(ids)


def find_rule(operation: Any) -> Rule | None:
    """Returns the rule of a layer or raw operation, or None if no rule is certain to apply."""
    cls = type(operation)
    for base in cls.__mro__:
        if base in _LAYER_RULES:
            same = all(getattr(cls, m) is getattr(base, m) for m in ("call", "build"))
            return _LAYER_RULES[base] if same else None
    if not isinstance(operation, keras.Layer) and cls.__module__.startswith("keras.src."):
        return _OPERATION_RULES.get(cls.__name__)
    return _OPERATION_RULES.get(f"{cls.__module__}.{cls.__qualname__}")


def spatial_size(shape: Shape) -> float:
    """Returns the number of positions between batch and channel axis; NaN if it is unknown."""
    return product(shape[1:-1])


def product(sizes: Iterable[int | None]) -> float:
    """Returns the product of sizes; NaN if one is unknown."""
    return float(math.prod(math.nan if size is None else size for size in sizes))

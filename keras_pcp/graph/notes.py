"""Records what the rules say about the calls of a program, and numbers the weights and operations that it mentions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_pcp.graph.labels import Labels, LabelTable
from keras_pcp.graph.program import Program
from keras_pcp.graph.rules import CallSite


@dataclass(frozen=True, eq=False)
class Index:
    """Numbers of the weights and operations of a program.

    Attributes:
        weights: the weights of the model.
        weight: {`id` of a weight: its number}.
        operation: {`id` of an operation: its number}.
        owner: {`id` of a weight: name of the layer that owns it}.
    """

    weights: list[Any]
    weight: Mapping[int, int]
    operation: Mapping[int, int]
    owner: Mapping[int, str]

    @classmethod
    def of(cls, program: Program) -> "Index":
        """Numbers the weights and operations of a program."""
        weights, operations = program.model.weights, program.trace.operations
        owner = {
            id(w): program.name_of(op)
            for op in operations
            if not isinstance(op, keras.Model)
            for w in getattr(op, "weights", ())
        }
        by_weight = {id(w): i for i, w in enumerate(weights)}
        return cls(weights, by_weight, {id(op): i for i, op in enumerate(operations)}, owner)


@dataclass(eq=False)
class Notes:
    """What the rules have said so far.

    Attributes:
        table: ties between labels, and which labels are frozen or inexact.
        labels: {number of a tensor: its labels}.
        sites: (layer, labels) for everything that makes channels.
        bindings: {(weight, axis): (labels, role, part)}.
        widths: {(owner, number, path): (size, labels)}.
        independent: numbers of the weights that do not depend on channels.
        ruled: calls that a rule was run for, with the labels of their inputs and outputs.
        costs: (call, factor, weight, axes): the cost is the factor times the sizes of these axes of the weight.
        uncounted: {layer: why its MACs are unknown}.
        unknown: {layer: why it is not known what it does to channels}.
    """

    table: LabelTable = field(default_factory=LabelTable)
    labels: dict[int, Labels | None] = field(default_factory=dict)
    sites: list[tuple[str, np.ndarray]] = field(default_factory=list)
    bindings: dict[tuple[int, int], tuple[np.ndarray, str, str]] = field(default_factory=dict)
    widths: dict[tuple, tuple[int, np.ndarray]] = field(default_factory=dict)
    independent: set[int] = field(default_factory=set)
    ruled: list[tuple[CallSite, tuple[Labels | None, ...]]] = field(default_factory=list)
    costs: list[tuple[CallSite, float, int, tuple[int, ...]]] = field(default_factory=list)
    uncounted: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

"""Lists the calls that lead to symbolic tensors, and makes layers forget calls."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import tree

from keras_pcp.support import internals
from keras_pcp.support.changes import Journal


def listed(function: Callable[[], Any], inputs: Sequence[keras.KerasTensor], journal: Journal) -> tuple[Any, list[Any]]:
    """Runs a function on new symbolic tensors and lists its calls. Undoing the journal makes the layers forget them.

    Returns:
        The result of the function, and the nodes that lead from `inputs` to it.
    """
    _Source(inputs).symbolic_call()
    note_calls(inputs, journal)
    result = function()
    return result, nodes_before([t for t in tree.flatten(result) if isinstance(t, keras.KerasTensor)], inputs)


class _Source(keras.Operation):
    """Makes new tensors. It remembers the calls on them, because Keras stores calls with the maker of a tensor."""

    def __init__(self, tensors: Sequence[keras.KerasTensor]):
        super().__init__(name="source")
        self.tensors = list(tensors)

    def compute_output_spec(self) -> list[keras.KerasTensor]:
        return self.tensors


def note_calls(values: Any, journal: Journal) -> None:
    """Makes the journal undo all later calls on the symbolic tensors in a structure, and on tensors that follow."""
    tensors = [t for t in tree.flatten(values) if isinstance(t, keras.KerasTensor)]
    known = {id(node) for node in _calls_on(tensors)}
    gone: list[Any] = []

    def take_back() -> None:
        gone[:] = gone or _new_calls(tensors, known)  # found once; after an interruption, some could not be found again
        ids = {id(node) for node in gone}
        for node in gone:
            for calls in _where_remembered(node):
                calls[:] = [n for n in calls if id(n) not in ids]

    journal.note(take_back)


def _calls_on(tensors: Iterable[keras.KerasTensor]) -> list[Any]:
    """Returns the calls on the outputs of the operations that made the tensors."""
    makers = {id(maker): maker for maker in map(internals.producing_operation, tensors) if maker is not None}
    return [node for maker in makers.values() for node in internals.remembered(maker)[1]]


def _new_calls(tensors: Sequence[keras.KerasTensor], known: set[int]) -> list[Any]:
    """Returns calls on some tensors that are not in `known`, and all calls on the tensors that follow from these."""
    found, waiting = {}, [node for node in _calls_on(tensors) if id(node) not in known]
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            made = {id(t) for t in node.outputs}
            waiting += [n for n in _calls_on(node.outputs) if any(id(t) in made for t in n.input_tensors)]
    return list(found.values())


def _where_remembered(node: Any) -> list[list[Any]]:
    makers = [maker for maker in map(internals.producing_operation, node.input_tensors) if maker is not None]
    return [internals.remembered(node.operation)[0], *(internals.remembered(maker)[1] for maker in makers)]


def nodes_before(outputs: list[keras.KerasTensor], inputs: Iterable[keras.KerasTensor] = ()) -> list[Any]:
    """Returns the nodes that lead from `inputs`, or from tensors without a history, to some tensors, in call order."""
    ends = {id(t) for t in inputs}
    found, seen, stack = [], set(), [(internals.node_of(t), False) for t in reversed(outputs) if id(t) not in ends]
    while stack:
        node, inputs_done = stack.pop()
        if node is None or (id(node) in seen and not inputs_done):
            continue
        if inputs_done:
            found.append(node)
        else:
            seen.add(id(node))
            stack.append((node, True))
            before = [t for t in tree.flatten(node.input_tensors) if id(t) not in ends]
            stack += [(internals.node_of(t), False) for t in reversed(before)]
    return found

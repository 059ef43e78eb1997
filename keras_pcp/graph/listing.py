"""Lists the calls that lead to symbolic tensors, and takes calls back, so that no layer remembers them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import keras
from keras import tree

from keras_pcp.support import internals
from keras_pcp.support.changes import Journal, undone


def listed(function: Callable[[], Any], inputs: Sequence[keras.KerasTensor]) -> tuple[Any, list[Any]]:
    """Runs a function of new symbolic tensors and lists the calls that it makes; all of them are taken back.

    Returns:
        What the function returns, and the nodes that lead from `inputs` to it.
    """
    source, calls = _Source(inputs), []
    source.symbolic_call()
    with undone() as journal:
        journal.note(lambda: _take_back(source, calls))
        result = function()
        outputs = [t for t in tree.flatten(result) if isinstance(t, keras.KerasTensor)]
        return result, nodes_before(outputs, inputs)


class _Source(keras.Operation):
    """Stands before tensors, so that all calls on them, and on what comes of them, can be found."""

    def __init__(self, tensors: Sequence[keras.KerasTensor]):
        super().__init__(name="source")
        self.tensors = list(tensors)

    def compute_output_spec(self) -> list[keras.KerasTensor]:
        return self.tensors


def _take_back(source: keras.Operation, calls: list[Any]) -> None:
    """Takes back all calls on what comes of an operation; `calls` are those that were found if this was begun before."""
    calls[:] = calls or _calls_after(source)
    gone = {id(node) for node in calls}
    for node in calls:
        for remembered in _remembered(node.operation, node.input_tensors):
            remembered[:] = [n for n in remembered if id(n) not in gone]


def _calls_after(source: keras.Operation) -> list[Any]:
    found, waiting = {}, list(internals.remembered(source)[1])
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            made, after = {id(t) for t in node.outputs}, internals.remembered(node.operation)[1]
            waiting += [n for n in after if any(id(t) in made for t in n.input_tensors)]
    return list(found.values())


def _remembered(operation: Any, tensors: Iterable[keras.KerasTensor]) -> list[list[Any]]:
    """Returns the lists to which a call of an operation on some tensors is added."""
    makers = {id(maker): maker for maker in map(internals.producing_operation, tensors) if maker is not None}
    of_it = [internals.remembered(operation)[0]] if isinstance(operation, keras.Operation) else []
    return [*of_it, *(internals.remembered(maker)[1] for maker in makers.values())]


def call(operation: Callable, args: tuple, kwargs: dict, journal: Journal) -> Any:
    """Calls an operation, or a function that makes one, on symbolic tensors; undoing the journal takes the call back."""
    tensors = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
    for remembered in _remembered(operation, tensors):
        journal.note(partial(remembered.__setitem__, slice(None), list(remembered)))
    return operation(*args, **kwargs)


def nodes_before(outputs: list[keras.KerasTensor], inputs: Iterable[keras.KerasTensor] = ()) -> list[Any]:
    """Returns the nodes that lead to some tensors, in an order of execution, back to inputs or without a history."""
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

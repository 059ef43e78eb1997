"""Cuts a network into stages.

A stage is a segment of the network. Each stage reads tensors of the stages before it, and makes tensors that later
stages or the user of the model read. A good place for a cut is where a single tensor is alive: all that follows depends
on it alone.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence

import keras
import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.program import Program
from keras_pcp.graph.segments import Segment, segment
from keras_pcp.graph.trace import Trace
from keras_pcp.support import internals
from keras_pcp.support.text import shorten


def stages(program: Program, macs: Sequence[float], num_stages: int, cut_after: Collection[str] = ()) -> list[Segment]:
    """Cuts a network into stages.

    Args:
        program: the network.
        macs: MACs of each call; without names, the cuts are chosen such that the largest stage is as small as possible.
        num_stages: number of stages, at least 1. Not used if there are names.
        cut_after: names of the layers after whose last call to cut; any number of tensors may be alive there. Without
            names, the network is cut where the resolution changes and one tensor is alive.

    Raises:
        InvalidArgumentError: there are too few such places, a layer is unknown, or the network would be cut inside a nested
            model that it calls several times, or where a mask is handed on.
    """
    traced = program.trace
    if cut_after:
        cuts = sorted({_last_call(program, name) + 1 for name in cut_after} - {len(traced.calls)})
    else:
        cuts = _balanced(macs, resolution_changes(traced, macs), num_stages, program.model.name)
    edges = [0, *cuts, len(traced.calls)]
    found = [segment(traced, *pair) for pair in itertools.pairwise(edges)]
    made = Counter(i for call in traced.calls for i in call.outputs)
    for stage in found[:-1]:
        again = [traced.tensors[i].name for i in stage.outputs if made[i] > 1]
        if again:
            raise InvalidArgumentError(
                f"{program.model.name!r} cannot be cut inside a nested model that it calls several times "
                f"(tensor {again[0]!r}); cut after other layers"
            )
        masked = [traced.tensors[i].name for i in stage.outputs if internals.mask_of(traced.tensors[i]) is not None]
        if masked:
            raise InvalidArgumentError(
                f"{program.model.name!r} cannot be cut where a mask is handed on (tensor {masked[0]!r}), because stages "
                "hand on values only; cut after other layers"
            )
    _check_normalizations(program, found)
    return found


def _check_normalizations(program: Program, found: Sequence[Segment]) -> None:
    """Raises InvalidArgumentError if stages share a batch normalization, which could not have statistics of both."""
    owner: dict[str, int] = {}
    for number, stage in enumerate(found):
        for call in program.trace.calls[stage.start : stage.stop]:
            if isinstance(call.operation, keras.layers.BatchNormalization):
                name = program.name_of(call.operation)
                if owner.setdefault(name, number) != number:
                    raise InvalidArgumentError(
                        f"stages {owner[name]} and {number} of {program.model.name!r} both call layer {name!r}, whose "
                        "statistics cannot be those of both; cut elsewhere, or pass fewer stages"
                    )


def resolution_changes(traced: Trace, macs: Sequence[float]) -> list[int]:
    """Returns where a network may be cut by itself: numbers of calls, before each of which only one tensor is alive.

    There is one place for each resolution but the last. It comes after the last merge of branches at that resolution. Of
    those places, it is the last one with the smallest tensor: in a network of bottleneck blocks, the end of a block.
    """
    found: list[tuple[tuple, int, int]] = []
    for place, alive in _alive(traced):
        if len(alive) == 1 and len(traced.tensors[alive[0]].shape) > 2 and any(macs[:place]):
            shape = traced.tensors[alive[0]].shape
            found.append((tuple(shape[1:-1]), int(shape[-1]), place))
    best, merges = [], [number + 1 for number, call in enumerate(traced.calls) if len(set(call.inputs)) > 1]
    for _, run in itertools.groupby(found, key=lambda entry: entry[0]):
        alike = list(run)
        merged = max((m for m in merges if m <= alike[-1][-1]), default=0)
        late = [(-size, place) for _, size, place in alike if place >= merged]
        best.append(max(late)[1])
    return best[:-1]


def _alive(traced: Trace) -> list[tuple[int, list[int]]]:
    """Returns for each place between two calls the tensors that were made before it and are read after it."""
    last = {i: number for number, call in enumerate(traced.calls) for i in call.inputs}
    made, found = dict.fromkeys(traced.inputs, 0), []
    again = Counter(i for call in traced.calls for i in call.outputs)
    for number, call in enumerate(traced.calls):
        if number:
            alive = [i for i in made if last.get(i, -1) >= number]
            if all(again[i] < 2 for i in alive):
                found.append((number, alive))
        made |= dict.fromkeys(call.outputs, number)
    return found


def _balanced(macs: Sequence[float], places: list[int], num_stages: int, name: str) -> list[int]:
    """Returns the cuts by which the stage with the most MACs has as few as possible."""
    if len(places) < num_stages - 1:
        raise InvalidArgumentError(
            f"num_stages must be at most {len(places) + 1} for model {name!r}, got {num_stages}: it has {len(places)} "
            "places where the resolution changes and all that follows depends on one tensor; pass fewer stages, or the "
            "names of layers by cut_after"
        )
    total = np.concatenate([[0.0], np.cumsum(macs)])

    def largest(cuts: tuple[int, ...]) -> float:
        return float(np.diff(total[[0, *cuts, len(macs)]]).max())

    cuts = min(itertools.combinations(places, num_stages - 1), key=largest)
    return list(cuts)


def _last_call(program: Program, name: str) -> int:
    calls = program.trace.calls
    found = [i for i, c in enumerate(calls) if c.operation is not None and program.name_of(c.operation) == name]
    if not found:
        known = [program.name_of(c.operation) for c in calls if c.operation is not None]
        raise InvalidArgumentError(
            f"cut_after names {name!r}, which is no layer that model {program.model.name!r} calls (of a nested model, name "
            f"the last layer); it calls {shorten(known)}"
        )
    return found[-1]

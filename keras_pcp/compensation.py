"""How far the layers that follow can make up for channels that a group loses: the refit of `reconstruct`, for attempts.

What an attempt costs is what it costs after the refit. So each attempt gets one: of the layers that read the channels, and
of all later ones that read any group, so that they take what reaches them as it then is. The goal of every layer is what
it gives now. Without the later layers, attempts near the input seem to cost more than they do, since most layers could
still make up for them.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar

import keras
import numpy as np

from keras_pcp.blocks import open_blocks
from keras_pcp.channels import CONSUME, ChannelGraph
from keras_pcp.cost import call_macs
from keras_pcp.masks import with_zeros
from keras_pcp.patches import as_floats, window_of
from keras_pcp.reconstruction import Goal
from keras_pcp.samples import count_samples
from keras_pcp.trace import Step, arrange_inputs, replay_calls, replay_from, trace

Masks = Mapping[int, np.ndarray]
Key = TypeVar("Key", bound=Hashable)


class Compensation:
    """Changes of the plain convolutions and dense layers that are called once, for any channels that they lose.

    Args:
        model: the model as it is, with no channels masked.
        graph: its channel graph; what reads one of its groups may change.
        x: inputs, in the model's structure.
        ridge: weight of the squared change of a kernel, in units of the mean squared norm of what it reads at a position.
        seed: for the draw of output positions.

    Attributes:
        macs: multiply-accumulates of the calls so far, without those of the fits themselves.
    """

    def __init__(self, model: keras.Model, graph: ChannelGraph, x: Any, ridge: float = 0.1, seed: int = 0):
        self.model, self.ridge = model, ridge
        self.index = {id(w): i for i, w in enumerate(model.weights)}
        self.traced = trace(open_blocks(model).model)
        self.inputs, rng = arrange_inputs(self.traced, x), np.random.default_rng(seed)
        called = [id(call.operation) for call in self.traced.calls]
        readers = {s.weight for group in graph for s in group.slices_of(CONSUME)}
        self.costs = count_samples(x) * call_macs(graph, self.traced)
        self.macs = self.costs.sum()
        self.goals: dict[int, Goal] = {}  # by the number of the call
        with keras.StatelessScope():
            for step in replay_calls(self.traced, self.inputs):
                layer = step.call.operation
                plain = called.count(id(layer)) == 1 and window_of(layer, len(step.input.shape)) is not None
                if plain and self.index[id(layer.kernel)] in readers:
                    self.goals[step.number] = Goal.of([step], rng)

    def values(self, attempts: Mapping[Key, Masks]) -> dict[Key, dict[int, np.ndarray]]:
        """Returns for each attempt the weights that change, by their index in the model's weights.

        Args:
            attempts: by any key, {index: boolean array that broadcasts to the weight}, False where a channel is no longer
                read.
        """
        found, waiting = {}, dict(attempts)
        with keras.StatelessScope():
            for step in replay_calls(self.traced, self.inputs):
                own = {self.index.get(id(w)) for w in getattr(step.call.operation, "weights", ())}
                for key in [k for k, masks in waiting.items() if own & masks.keys()]:
                    found[key] = self._follow(replay_from(self.traced, step), waiting.pop(key))
                    self.macs += self.costs[step.number :].sum()
                if not waiting:
                    break
                self.macs += self.costs[step.number]
        return found | {key: with_zeros(self.model, masks) for key, masks in waiting.items()}

    def _follow(self, steps: Iterator[Step], masks: Masks) -> dict[int, np.ndarray]:
        """Refits what follows the first layer that loses channels."""
        values, weights = with_zeros(self.model, masks), self.model.weights
        with keras.StatelessScope([(weights[i], value) for i, value in values.items()]):
            for step in steps:
                if step.number not in self.goals:
                    continue
                layer = step.call.operation
                mask = masks.get(self.index[id(layer.kernel)], np.array(True))
                rows = np.broadcast_to(mask, layer.kernel.shape).reshape(-1, *layer.kernel.shape[-2:])[0, :, 0]
                _, changed = self.goals[step.number].refit([step], rows, slice(None), self.ridge)
                for variable, value in changed:
                    variable.assign(value)
                for variable in [layer.kernel, *[layer.bias] * layer.use_bias]:
                    values[self.index[id(variable)]] = as_floats(variable)
        return values

"""Evaluates many attempts on the same samples. Each one is computed only from where it begins to differ."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import tree

from keras_pcp.fit.evaluator import Evaluator
from keras_pcp.fit.rerun import Segmented
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import CONSUME
from keras_pcp.graph.cost import call_macs
from keras_pcp.graph.program import program_of
from keras_pcp.graph.trace import arrange_inputs, functional_graph

Values = Mapping[int, np.ndarray]


class Comparison:
    """Compares a model with what it would be if pruned. The model itself is not changed.

    The model is divided into segments, one beginning with each layer where an attempt may begin to differ. What the segments
    hand over is computed once for a part of the samples. An attempt runs the segments whose weights or inputs it changes:
    half of the network on average.

    Args:
        evaluator: evaluates outputs of the model on its samples.
        graph: channel graph of the model as it is now.

    Attributes:
        macs: multiply-accumulates spent so far.
    """

    def __init__(self, evaluator: Evaluator, graph: ChannelGraph):
        self.evaluator, self.macs = evaluator, 0.0
        self.weights = evaluator.model.weights
        program = program_of(evaluator.model)
        self.traced, self.costs = program.trace, call_macs(graph, program)
        read = {id(self.weights[s.weight]) for group in graph for s in group.slices_of(CONSUME)}
        of_calls = [getattr(call.operation, "weights", ()) for call in self.traced.calls]
        starts = [number for number, weights in enumerate(of_calls) if any(id(w) in read for w in weights)]
        changing = list({id(w): w for number in starts for w in of_calls[number]}.values())
        self.network = Segmented(self.traced, starts, changing, not evaluator.judge.run_eagerly)

    def compare(self, attempts: Mapping[str, Values], part: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Evaluates the model as it is and with some weights changed, on a part of the evaluator's chunks.

        Args:
            attempts: {name of an attempt: {index of a weight: its value}}.
            part: slice of the chunks.

        Returns:
            Metric and loss of the model as it is, float array (chunks, 2), and {name: float array (chunks, 2)}, the
            fall of the metric and the rise of the loss in each attempt.
        """
        rows = self.evaluator.samples(part)
        x = tree.map_structure(lambda a: a[rows], self.evaluator.x)
        recording = self.network.record(arrange_inputs(self.traced, x))
        samples = rows.stop - rows.start
        self.macs += samples * self.costs.sum()
        outputs = [recording.outputs]
        for values in attempts.values():
            found, ran = self.network.run(recording, {id(self.weights[i]): value for i, value in values.items()})
            outputs.append(found)
            self.macs += samples * sum(self.costs[segment.start : segment.stop].sum() for segment in ran)
        before, *after = self.evaluator.judge_chunks([self.packed(o) for o in outputs], part)
        return before, {name: (found - before) * [-1, 1] for name, found in zip(attempts, after, strict=True)}

    def packed(self, outputs: list[Any]) -> Any:
        """Brings outputs into the structure that the model's loss expects."""
        structure = functional_graph(self.evaluator.model).output
        return tree.pack_sequence_as(structure, [np.asarray(o) for o in outputs])

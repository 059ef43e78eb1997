"""A model that gets smaller in place: keeps track of cut channels and of channels held at zero, and refits layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_pcp.errors import UnsupportedModelError
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.narrowing import narrowed
from keras_pcp.graph.program import program_of
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.trace import tensor_sizes
from keras_pcp.graph.weight_masks import consumer_masks, weight_masks
from keras_pcp.repair.closed_form import corrected
from keras_pcp.repair.least_squares import REFIT_SAMPLES, Goals, goals_of, inputs_at_once, refit, refit_to
from keras_pcp.support.changes import Journal, all_or_nothing, guarded
from keras_pcp.support.data import check_inputs, take_samples, with_any_labels
from keras_pcp.surgery.copies import prune_model
from keras_pcp.surgery.gates import Gates, zeroed
from keras_pcp.surgery.in_place import shrinking, sliced

# Samples for a refit that will be done again, and for the refit that is estimated in attempts.
FEW_SAMPLES = 512
_BYTES_AT_ONCE = 2**30  # of the largest tensor, when a cut is corrected

Errors = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class _Origin:
    """The model as it was some rounds ago.

    Attributes:
        model, graph: a copy, and its channel graph.
        uncut: the channels that it had left.
        goals: what the refits that will be done again aim at; None if there are none.
    """

    model: keras.Model
    graph: ChannelGraph
    uncut: Selection
    goals: Goals | None


class LiveModel:
    """A model that is being pruned. Selections use the channel numbers of the unpruned model.

    Attributes:
        model: the model.
        whole, graph: channel graph of the unpruned model, and of the model as it is now.
        uncut: channels that the model still has.
        gates: hold channels at zero.
        refit_on: (x, y, sample_weight) on which readers of cut channels are refit; None: no refit.
        errors: {layer: (before, after)}: what the latest corrected cut has lost of the layer's outputs, without and with
            correction, see `corrected`.
    """

    def __init__(self, model: keras.Model, graph: ChannelGraph, uncut: Selection):
        self.model, self.whole, self.graph, self.uncut = model, graph, graph, uncut
        self.gates = Gates(model, graph)
        self.refit_on: Any = None
        self.errors: Errors = {}
        self._origin: _Origin | None = None

    def refit_from(self, data: Any, seed: int) -> None:
        """Makes each cut be followed by a refit. The samples for it are drawn now.

        Raises:
            UnsupportedModelError: the model has blocks, or cannot be copied.
            InvalidArgumentError: the samples do not fit.
        """
        if self.whole.blocks:
            raise UnsupportedModelError(
                f"refit_data needs a plain model, and {self.model.name!r} has blocks such as {self.whole.blocks[0]!r}; "
                "open them first: model = keras_pcp.inline_blocks(model)"
            )
        self.refit_on = take_samples(with_any_labels(data), REFIT_SAMPLES, seed, "refit_data")
        check_inputs(self.model, self.refit_on[0], "refit_data")
        prune_model(self.model, self.whole, Selection())  # a refit needs copies; if that fails, fail now

    def here(self, selection: Selection) -> Selection:
        """Returns a selection in the channel numbers of the model as it is now."""
        return selection.after(self.uncut)

    def value(self, index: int) -> np.ndarray:
        """Returns the value of a weight; parts held at zero have the values that they would come back with."""
        return self.gates.whole(index)

    def cut(self, kept: Selection, more: bool, record: Callable[[Journal], None], samples: Any = None) -> None:
        """Makes the model physically smaller, and refits or corrects it if there is data for that.

        Args:
            kept: channels that stay.
            more: whether another cut follows before the model is trained. In a series of such cuts, each refit starts
                from the model before the first cut, so that errors do not add up. The last refit uses the most samples.
            record: updates everything that must match the model.
            samples: inputs, in the order of the model's, on which the readers of cut channels make up for them; None: no
                correction. With `refit_on` they are not used.
        """
        origin: _Origin | None = None
        values: Sequence[np.ndarray | None] | None = None
        errors: Errors = {}
        if self.refit_on is not None:
            origin, values = self._refit(kept, more)
        elif samples is not None:
            values, errors = self._corrected(kept, samples)
        graph = narrowed(self.whole, kept)
        write = None if self.gates.masks else shrinking(self.model, self.graph, self.here(kept), values)

        def change(journal: Journal) -> None:
            self.gates.open(journal)
            (write or shrinking(self.model, self.graph, self.here(kept), values))(journal)
            journal.set(self, "uncut", kept)
            journal.set(self, "graph", graph)
            journal.set(self, "gates", Gates(self.model, graph))
            journal.set(self, "_origin", origin)
            journal.set(self, "errors", errors)
            record(journal)

        all_or_nothing(change)

    def hold(self, kept: Selection) -> None:
        """Holds channels at zero until a later action brings them back."""
        all_or_nothing(lambda journal: self.gates.hold(self.here(kept), journal))

    def release(self) -> None:
        """Brings back what is held at zero."""
        all_or_nothing(self.gates.open)

    def zero(self, kept: Selection) -> None:
        """Sets the weights that make channels to zero, once."""
        self._write(zeroed(self.model, self.graph, self.here(kept)))

    def write(self, values: Mapping[int, np.ndarray]) -> None:
        """Writes weights. They are given in the shape of the unpruned model."""
        masks = weight_masks(self.whole, self.uncut)
        self._write({i: sliced(np.asarray(value), masks.get(i, {})) for i, value in values.items()})

    def _write(self, values: Mapping[int, np.ndarray]) -> None:
        all_or_nothing(lambda journal: self.gates.write(values, journal))

    def _corrected(self, kept: Selection, samples: Any) -> tuple[list[np.ndarray | None], Errors]:
        """Returns the new values of the weights that change, and what the readers' outputs lose. Changes nothing yet."""
        selection, variables = self.here(kept), self.model.weights
        masks, readers = weight_masks(self.graph, selection), consumer_masks(self.graph, selection)
        program = program_of(self.model)
        at_once = _BYTES_AT_ONCE // (4 * max(tensor_sizes(program.trace, samples)))
        samples = [array[: max(1, at_once)] for array in samples]
        new, lost = guarded(lambda: corrected(self.model, readers, samples))
        errors = {self.graph.weights[i].layer: pair for i, pair in lost.items()}
        changed = {i: new.get(i, self.value(i)) for i in masks.keys() | new.keys()}
        values = [sliced(changed[i], masks.get(i, {})) if i in changed else None for i in range(len(variables))]
        return [None if v is None else v.astype(self.value(i).dtype) for i, v in enumerate(values)], errors

    def _refit(self, kept: Selection, more: bool) -> tuple[_Origin | None, list[np.ndarray]]:
        """Returns the model that the next refit starts from, and the weights after this one. Changes nothing yet."""
        origin = self._origin or self._here(more)
        selection = kept.after(origin.uncut)
        small = prune_model(origin.model, origin.graph, selection)
        if more:
            assert origin.goals is not None  # it was made when more cuts were to follow, too
            refit_to(origin.goals, small, selection)
        else:
            refit(origin.model, small, origin.graph, selection, self.refit_on)
        return origin if more else None, small.get_weights()

    def _here(self, more: bool) -> _Origin:
        """Returns the model as it is now. If more cuts follow, the original outputs are found once for all their refits."""
        copy, goals = prune_model(self.model, self.graph, Selection()), None
        if more:
            goals = goals_of(copy, self.graph, inputs_at_once(copy, self.refit_on, FEW_SAMPLES, 0), 0)
        return _Origin(copy, self.graph, self.uncut, goals)

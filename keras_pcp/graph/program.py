"""Lists the calls of a model, with its blocks opened. These calls are analysed, counted, measured and rewritten."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_pcp.graph.blocks import Opened, open_blocks
from keras_pcp.graph.trace import Trace, trace


@dataclass(frozen=True, eq=False)
class Program:
    """A model as a flat list of calls, with its blocks opened. The model is not changed.

    Attributes:
        model: the model.
        opened: the plain model that was traced (it shares the layers), and what was opened to get it.
        trace: the calls.
        names: {`id` of an operation: its name in the plain model}. Inner layers of blocks may have other names there.
    """

    model: keras.Model
    opened: Opened
    trace: Trace
    names: Mapping[int, str]

    def name_of(self, operation: Any) -> str:
        """Returns the name of an operation in the plain model. If it is not called there, returns its usual name."""
        return self.names.get(id(operation), operation.name)


def program_of(model: keras.Model, opening: bool = True) -> Program:
    """Opens the blocks of a model and lists its calls. With `opening=False`, the blocks stay closed.

    Raises:
        UnsupportedModelError: if `model` is not a built Functional or Sequential model.
    """
    traced = trace(model)
    opened = open_blocks(model, traced) if opening else Opened(model)
    plain = traced if opened.model is model else trace(opened.model)
    return Program(model, opened, plain, {id(op): opened.names.get(id(op), op.name) for op in plain.operations})

"""What helps a pruned model back on its feet while it trains on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_pcp import internals
from keras_pcp.channels import Selection
from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.graph import build_graph
from keras_pcp.surgery import prune_model


def _logits() -> Any:
    if not hasattr(keras, "distillation"):
        raise PruningError(
            f"distillation needs keras.distillation, which came with Keras 3.12; this is {keras.__version__}"
        )
    # Given by its name, the loss would be a function, for which Keras 3.15 leaves out the softmax.
    return keras.distillation.LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence())


@dataclass(frozen=True)
class Distillation:
    """Lets the model in `fit` learn from itself as it was before pruning.

    The loss becomes `(1 - weight) * loss + weight * distillation loss` between the outputs of the model and of a frozen
    copy of the unpruned model, on the same batch. The copy takes one forward pass per step and the memory of its weights.

    Attributes:
        weight: share of the distillation loss, in (0, 1].
        loss: any `keras.distillation.DistillationLoss` that compares final outputs. The default is
            `LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence())`, for models whose outputs are logits;
            for others, `FeatureDistillation` with a loss that suits them.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.

    Example:
        >>> import keras_pcp
        >>> keras_pcp.Distillation(weight=0.5).weight
        0.5
    """

    weight: float = 0.5
    loss: Any = field(default_factory=_logits)

    def __post_init__(self):
        if not 0 < self.weight <= 1:
            raise InvalidArgumentError(f"weight must be in (0, 1], got {self.weight!r}")
        if getattr(self.loss, "teacher_layer_name", None) or getattr(self.loss, "student_layer_name", None):
            raise InvalidArgumentError(
                "distillation of hidden layers is not supported, since their widths change; use a loss without "
                "teacher_layer_name and student_layer_name, which compares final outputs"
            )

    @contextmanager
    def teaching(self, model: keras.Model) -> Iterator[None]:
        """Inside the block, the model as it is now teaches the model as it becomes."""
        teacher = prune_model(model, build_graph(model, on_unknown="freeze"), Selection())
        teacher.trainable = False
        usual = model.compute_loss

        def compute_loss(x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = usual(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
            if not training:
                return loss
            distilled = self.loss.compute_loss(teacher(x, training=False), y_pred)
            return (1 - self.weight) * loss + self.weight * distilled

        model.compute_loss = compute_loss
        internals.forget_traces([model])
        try:
            yield
        finally:
            del model.compute_loss
            internals.forget_traces([model])

"""Distillation: the unpruned model teaches the pruned one while it trains."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import tree

from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.graph.build import build_graph
from keras_pcp.graph.selection import Selection
from keras_pcp.graph.trace import trace
from keras_pcp.repair.loss_terms import Batch, LossTerm, LossTerms
from keras_pcp.support import checks
from keras_pcp.surgery.copies import prune_model

DISTILLATION_LOSS = "that of a keras.distillation loss, such as LogitsDistillation()"


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

    The loss becomes `(1 - weight) * loss + weight * distillation loss`. The distillation loss compares the outputs of the
    model with those of a copy of the unpruned model that does not train, on the same batch. Weight penalties are part of the
    loss. Sample weights do not apply to the distillation. The copy takes one forward pass per step and the memory of its
    weights. When `fit` ends, even by an interrupt, the model has its own loss again.

    Attributes:
        weight: share of the distillation loss, in (0, 1].
        loss: any `keras.distillation.DistillationLoss` that compares final outputs. The default is
            `LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence())`, for models whose outputs are logits. For
            other models, use `FeatureDistillation` with a loss that suits them.

    Raises:
        InvalidArgumentError: `weight` is out of range, or the loss compares inner layers.
        PruningError: no loss is given and Keras is older than 3.12.

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
        checks.number("weight", self.weight, "(0, 1]")
        checks.function("compute_loss of `loss`", getattr(self.loss, "compute_loss", None), DISTILLATION_LOSS)
        if getattr(self.loss, "teacher_layer_name", None) or getattr(self.loss, "student_layer_name", None):
            raise InvalidArgumentError(
                "distillation of hidden layers is not supported, since their widths change; use a loss without "
                "teacher_layer_name and student_layer_name, which compares final outputs"
            )

    def term(self, model: keras.Model) -> LossTerm:
        """Returns the loss term by which the model as it is now teaches the model as it becomes.

        Raises:
            InvalidArgumentError: the loss does not suit the model.
        """
        self.check(model)
        teacher = prune_model(model, build_graph(model, on_unknown="freeze"), Selection())
        teacher.trainable = False
        return _Taught(self, teacher)

    def check(self, model: keras.Model) -> None:
        """Raises InvalidArgumentError if the loss does not suit the model."""
        if not isinstance(self.loss, keras.distillation.LogitsDistillation):
            return
        traced = trace(model)
        for call in traced.calls:
            for i in set(call.outputs) & set(traced.outputs):
                activation = getattr(call.operation, "activation", None) or call.operation
                probable = getattr(activation, "__name__", "") in ("softmax", "sigmoid")
                if probable or isinstance(call.operation, keras.layers.Softmax) or traced.tensors[i].shape[-1] == 1:
                    raise InvalidArgumentError(
                        f"LogitsDistillation needs logits of several classes, but output {traced.tensors[i].name!r} of "
                        f"model {model.name!r} has the shape {traced.tensors[i].shape} and the activation "
                        f"{getattr(activation, '__name__', activation)!r}; give "
                        "loss=keras.distillation.FeatureDistillation(loss=...) with a loss that suits it, such as "
                        "keras.losses.KLDivergence() for probabilities or 'mse' for a regression"
                    )

    def teaching(self, model: keras.Model) -> AbstractContextManager[None]:
        """Makes the model as it is now teach the model in training, inside a `with` block."""
        return LossTerms(model, [self.term(model)]).added()


@dataclass(frozen=True, eq=False)
class _Taught:
    """`(1 - weight) * loss + weight * distillation loss`."""

    distillation: Distillation
    teacher: keras.Model

    def __call__(self, loss: Any, batch: Batch) -> Any:
        if batch.x is None:
            raise InvalidArgumentError(
                f"distillation needs the inputs, but train_step of model {batch.model.name!r} calls compute_loss without x; "
                "write compute_loss(x=x, y=y, y_pred=y_pred, ...) there"
            )
        weight = self.distillation.weight
        outputs = tree.flatten(self.teacher(batch.x, training=False)), tree.flatten(batch.y_pred)
        distilled = sum(self.distillation.loss.compute_loss(*pair) for pair in zip(*outputs, strict=True))
        return (1 - weight) * loss + weight * distilled

"""Changes the loss while a model trains: combines several terms, and removes them all in one place."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import internals
from keras_pcp.support.batch import Batch, LossTerm
from keras_pcp.support.changes import Journal, temporarily
from keras_pcp.support.models import iterations_of


class LossTerms:
    """The terms of one training run, in order. The first one gets the loss of the model.

    Attributes:
        terms: the terms.
        used: whether a training step has asked for the loss.
        started: training steps that the optimizer had made before.
    """

    def __init__(self, model: keras.Model, terms: Sequence[LossTerm] = ()):
        self.model, self.terms, self.used, self.started = model, list(terms), False, 0

    def set(self, terms: Sequence[LossTerm]) -> None:
        """Replaces the terms. If they differ from the old ones, the train function is traced again."""
        if list(terms) != self.terms:
            self.terms = list(terms)
            internals.forget_traces([self.model], Journal())

    @contextmanager
    def added(self, running: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Inside the block, the terms change the loss of the model in training.

        `running` says whether the training run of the block is still in progress. An interrupted `fit` does not report
        its end. So if the loss or a train function is requested after the run has ended, the block ends, too.

        Raises:
            InvalidArgumentError: `compute_loss` of the model cannot say whether it is called in training.
        """
        model = self.model
        if "training" not in inspect.signature(model.compute_loss).parameters:
            raise InvalidArgumentError(
                f"compute_loss of model {model.name!r} needs an argument `training` for distillation and other loss terms"
            )
        self.started = iterations_of(model.optimizer)
        with temporarily(lambda journal: self._install(journal, running)):
            yield
            if self.terms and not self.used and iterations_of(model.optimizer) > self.started:
                warnings.warn(
                    f"distillation and other loss terms had no effect, because train_step of model {model.name!r} does not "
                    "call compute_loss",
                    stacklevel=2,
                )

    def _install(self, journal: Journal, running: Callable[[], bool]) -> None:
        model = self.model
        replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        accumulated = getattr(inner, "gradient_accumulation_steps", None) or 1  # batches in one iteration
        usual, make_usual = model.compute_loss, model.make_train_function

        def compute_loss(x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = usual(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
            if not running():
                journal.undo()
                return loss
            if not training:
                return loss
            self.used = True
            step = (model.optimizer.iterations - self.started) * accumulated
            for term in self.terms:
                loss = term(loss, Batch(model, x, y, y_pred, sample_weight, step, replicas, keras.ops))
            return loss

        def make_train_function(force=False):
            if not running():
                journal.undo()
            return make_usual(force)

        journal.note(lambda: internals.forget_traces([model], Journal()))
        journal.set(model, "make_train_function", make_train_function)
        journal.set(model, "compute_loss", compute_loss)
        internals.forget_traces([model], Journal())

"""Changes the loss while a `fit` prunes: adds distillation, and the terms of the strategy."""

from contextlib import ExitStack
from functools import partial
from typing import Any

from keras_pcp.fit.latest import Latest
from keras_pcp.fit.run import Run
from keras_pcp.repair.loss_terms import LossTerms
from keras_pcp.strategies.protocol import Strategy, checked_terms
from keras_pcp.support import internals


class Teaching:
    """The terms of the loss in one `fit`, from `begin` to `close`."""

    def __init__(self, callback: Any, run: Run):
        self.callback, self.run = callback, run
        self.own = type(run.strategy).loss_terms is not Strategy.loss_terms
        self.taught: list[Any] = []
        self.unknown = ""
        self.terms: LossTerms | None = None
        self.stack = ExitStack()

    def begin(self) -> None:
        """Changes the loss, if there are terms."""
        model, distillation = self.callback.model, self.callback.distillation
        if distillation:
            self.taught = [distillation.term(model)]
        if self.run.strategy.needs.batches and self.run.progress < 1 and self.run.live.refit_on is None:
            latest = Latest(model)
            if not latest.kept:
                self.unknown = (
                    "cuts are not corrected, because samples of the inputs have no fixed size or are too large"
                )
            self.taught, self.run.latest = [*self.taught, latest], latest.inputs
        if self.taught or self.own:
            self.terms = LossTerms(model, self._all())
            self.stack.enter_context(self.terms.added(partial(internals.in_training, self.callback)))

    def refresh(self) -> None:
        """Updates the terms to match the state of the strategy."""
        if self.terms is not None and self.own:
            self.terms.set(self._all())

    def close(self) -> None:
        """Restores the loss of the model."""
        self.stack.close()

    def _all(self) -> list[Any]:
        return [*self.taught, *checked_terms(self.run.strategy, self.run.problem, self.run.state)]

"""Checks a strategy."""

import json
from contextlib import nullcontext

import keras

from keras_pcp.errors import PruningError
from keras_pcp.fit.latest import Latest
from keras_pcp.fit.metric import Measuring
from keras_pcp.fit.moments import Steps, moments
from keras_pcp.fit.observation import Moment
from keras_pcp.fit.run import Run
from keras_pcp.graph.build import build_graph
from keras_pcp.graph.model_cost import count_cost
from keras_pcp.repair.loss_terms import LossTerms
from keras_pcp.schedules import linear
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.strategies.protocol import Action, FitLength, Strategy, checked_terms
from keras_pcp.testing.networks import SEED, networks, require, samples_for


def check_strategy(strategy: Strategy, *, max_macs: float = 0.6, reaches: bool = True) -> None:
    """Checks in short training runs that a strategy does what the rest of keras_pcp relies on.

    The models are tiny: a residual network, a concatenation with two outputs, a depthwise convolution, and a dense
    layer behind a flatten. The strategy must meet these conditions:

    - `when` returns rising steps.
    - At each of them, the strategy stops asking for more after a finite number of actions.
    - Its actions are possible, and leave at least one channel in every group.
    - After the last moment, the model is at or below the limit.
    - Its state can be converted to JSON and back.
    - The same seed gives the same actions.

    Args:
        strategy: the strategy.
        max_macs: the limit, as a fraction of the unpruned model, in (0, 1).
        reaches: False for a strategy that is not meant to reach the limit, such as one that only watches.

    Raises:
        AssertionError: a condition does not hold. The message says which.

    Example:
        >>> import keras_pcp.testing
        >>> keras_pcp.testing.check_strategy(keras_pcp.strategies.OneShot())
    """
    for (what, model), (_, again) in zip(networks(), networks(), strict=True):
        done = _trained_with(what, model, strategy, max_macs, through_json=True)
        other = _trained_with(what, again, strategy, max_macs, through_json=False)
        same = [_written(action) for action in done] == [_written(action) for action in other]
        require(
            same,
            f"on {what}, the strategy does something else when its state has been JSON in between, or when it runs again "
            "with the same seed; its state must hold all that it remembers, and random draws must depend on seen.seed",
        )
        if reaches:
            holds = count_cost(model).macs <= max_macs * count_cost(next(m for w, m in networks() if w == what)).macs
            require(
                holds,
                f"on {what}, the model is above the limit after the last moment; give reaches=False if that is meant",
            )


def _written(action: Action) -> tuple:
    """Returns an action as values to compare. Groups go by their order, because two models have other layer names."""
    return action.how, [mask.tolist() for mask in action.keep.keep.values()]


_STEPS, _EPOCH, _MOST_ACTIONS = 12, 2, 1000


def _trained_with(
    what: str, model: keras.Model, strategy: Strategy, max_macs: float, through_json: bool
) -> list[Action]:
    """Trains a model for some steps while a strategy prunes it, and returns the actions of the strategy."""
    keras.utils.set_random_seed(SEED)
    samples = samples_for(model)
    problem = Problem.of(build_graph(model), Limits(max_macs=max_macs))
    run = Run(model, problem, strategy, "l1", samples, Measuring(seed=SEED))
    fit = FitLength(_STEPS, _EPOCH, 0.1, 0.9, schedule=linear)
    due = {moment.step: moment for moment in moments(strategy.when(problem, fit), fit, Steps(per_epoch=_EPOCH))}
    latest = [Latest(model)] if strategy.needs.batches else []
    if latest:
        run.latest = latest[0].inputs
    terms, actions = LossTerms(model, [*latest, *checked_terms(strategy, problem, run.state)]), []
    with terms.added() if terms.terms else nullcontext():
        for step in range(_STEPS):
            if step in due:
                actions += _actions(what, run, due[step])
                if terms.terms:
                    terms.set([*latest, *checked_terms(strategy, problem, run.state)])
            if through_json:
                run.from_json(json.loads(json.dumps(run.to_json())))
            model.train_on_batch(*samples)
    return actions


def _actions(what: str, run: Run, moment: Moment) -> list[Action]:
    found: list[Action] = []
    while len(found) < _MOST_ACTIONS:
        try:
            action = run.ask(moment, fresh=not found)
        except PruningError as error:
            raise AssertionError(f"on {what}, the strategy fails: {error}") from error
        found += [] if action is None else [action]
        if action is not None:
            run.carry_out(action, action.more)
        if action is None or not action.more:
            run.carry_out(None)
            return found
    raise AssertionError(f"on {what}, the strategy never stops asking for another turn (Action.more)")

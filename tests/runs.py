"""A strategy at work outside a `fit`, one round at a time."""

from dataclasses import dataclass, replace
from typing import Any

import keras_pcp
from keras_pcp.fit.metric import Measuring
from keras_pcp.fit.observation import Moment
from keras_pcp.fit.run import Run
from keras_pcp.graph.selection import Selection
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.strategies.progressive import Progressive


def run_of(model, data, strategy=None, criterion="l1", measuring=None, refit_data=None, **limits):
    """Returns a run; its rounds go as far as `round_to` says."""
    problem = Problem.of(keras_pcp.build_graph(model), Limits(**limits or {"max_macs": 0.5}))
    strategy = strategy or Progressive()
    return Run(model, problem, strategy, criterion, data, measuring or Measuring(), refit_data)


def round_to(run, target):
    """Runs one round that is meant to bring pruning to a target."""
    usual = run.strategy
    run.strategy = in_one_round(usual)
    try:
        return run.ask(Moment(count=1 / max(target - run.progress, 1e-9)))
    finally:
        run.strategy = usual


def in_one_round(strategy):
    """Returns a strategy whose number of rounds is that of the moments alone."""
    by_cost = isinstance(strategy, Progressive) and isinstance(strategy.step, float)
    return replace(strategy, step=0.999) if by_cost else strategy


@dataclass
class Standing:
    """Where a strategy stands that sees an oracle."""

    selection: Selection
    state: Any
    rounds: tuple = ()


def one_round(graph, strategy, oracle, bounds, target, standing=None):
    """Lets a strategy see an oracle once, for a round that is meant to bring pruning to a target."""
    problem = Problem(graph, bounds, keras_pcp.count_cost(graph))
    standing = standing or Standing(problem.nothing_removed(), strategy.init(problem))
    oracle.kept = oracle.uncut = standing.selection
    oracle.moments = 1 / max(target - problem.progress(standing.selection), 1e-9)
    state, action = in_one_round(strategy).update(problem, standing.state, oracle)
    if action is None:
        return standing
    return Standing(action.keep, state, (*standing.rounds, action))

"""Strategies written as CONTRIBUTING says, in `fit`; and the kit that checks strategies."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny_fits import network, samples

import keras_pcp
from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.fit.moments import Steps, moments
from keras_pcp.graph.selection import Selection
from keras_pcp.schedules import cubic, linear
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.select.select import just_enough, select_by_ratio
from keras_pcp.strategies import (
    Action,
    Adaptive,
    Chex,
    FitLength,
    LayerByLayer,
    Needs,
    OneShot,
    Progressive,
    RandomWidths,
    SoftFilterPruning,
    Strategy,
)
from keras_pcp.strategies.protocol import evenly, spread
from keras_pcp.testing import check_strategy

L = keras.layers
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


@dataclass(frozen=True)
class Iterative(Strategy):
    """Prunes all groups by the same ratio in each of several rounds, with new scores each time."""

    needs = Needs(validation=False)
    times: int = 4

    def rounds(self, problem):
        return self.times

    def init(self, problem):
        return {"round": 0}

    def update(self, problem, state, seen):
        number = state["round"] + 1
        if problem.holds(seen.kept):
            return state, None
        ratio = 1 - 0.5 ** (number / self.times)
        keep = just_enough(problem, seen.scores(), scope="local")
        if number < self.times:
            scores = {n: np.where(np.isfinite(s), s, -1e9) for n, s in seen.scores().items()}
            keep = select_by_ratio(problem.graph, scores, ratio, scope="local")
        return {"round": number}, None if keep == seen.kept else Action(keep)


@dataclass(frozen=True)
class Counted:
    held: Selection
    times: int


@dataclass(frozen=True)
class Regrowing(Strategy):
    """Holds half of the channels at every moment, always others, and cuts at the last one."""

    needs = Needs(validation=False, training=True, holds=True)

    def when(self, problem, fit):
        return fit.epoch_ends()

    def init(self, problem):
        return Counted(problem.nothing_removed(), 0)

    def update(self, problem, state, seen):
        if seen.moment == seen.moments - 1:
            return state, Action(just_enough(problem, seen.scores(), scope="local"))
        even = {g.name: np.arange(g.num_channels) % 2 == state.times % 2 for g in problem.graph}
        keep = Selection(even)
        return Counted(keep, state.times + 1), Action(keep, how="hold")


@dataclass(frozen=True)
class Watching(Strategy):
    """Measures at every moment, and never does anything."""

    def init(self, problem):
        return ()

    def update(self, problem, state, seen):
        return (*state, seen.evaluate(seen.kept).loss), None


def shrinking_weights(loss, batch):
    return loss + sum(keras.ops.sum(keras.ops.square(w)) for w in batch.model.trainable_weights)


@dataclass(frozen=True)
class Decaying(Strategy):
    """Adds a penalty on the weights until it prunes."""

    needs = Needs(validation=False)

    def init(self, problem):
        return False

    def update(self, problem, state, seen):
        if seen.moment < seen.moments - 1 or state:
            return state, None
        return True, Action(just_enough(problem, seen.scores(), scope="local"))

    def loss_terms(self, problem, state):
        return () if state else (shrinking_weights,)


def fit(strategy, epochs=6, callbacks=(), model=None, **options):
    model = model or network()
    options = {"max_macs": 0.5, "begin": 0.1, "end": 0.8} | options
    if strategy.needs.validation:
        options["validation_data"] = samples()
    pruning = keras_pcp.Pruning(strategy, **options)
    model.fit(*samples(), batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=[pruning, *callbacks])
    return model, pruning


@pytest.mark.parametrize("strategy", [Iterative(), Regrowing(), Decaying()], ids=lambda s: type(s).__name__)
def test_a_strategy_of_ones_own_works_in_fit(strategy):
    model, pruning = fit(strategy)
    assert pruning.report.reached
    assert keras_pcp.count_cost(model).macs == pruning.report.after["macs"]
    assert str(pruning.report)


@pytest.mark.parametrize(
    "strategy",
    [Regrowing(), *(pytest.param(s, marks=pytest.mark.slow) for s in (Iterative(), Decaying()))],
    ids=lambda s: type(s).__name__,
)
def test_a_strategy_of_ones_own_passes_the_kit(strategy):
    check_strategy(strategy)


def test_a_strategy_that_only_watches_changes_nothing():
    with pytest.warns(UserWarning, match="before pruning reached its limits"):
        model, pruning = fit(Watching())
    assert model.get_layer("first").filters == 8
    assert pruning.report.rounds == []
    assert len(pruning.state) >= 2
    assert all(loss > 0 for loss in pruning.state)


def test_the_example_in_contributing_works_as_it_stands():
    text = CONTRIBUTING.read_text()
    section = text[text.index("## Add a strategy") : text.index("## Long checks")]
    code = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n)+", section, re.M) if "class" in block]
    place = {"__name__": __name__}
    assert len(code) == 2
    exec(compile("\n".join(code), str(CONTRIBUTING), "exec"), place)
    place["StepByStep"].loss_terms = lambda self, problem, state: [place["Small"](1e-3)]
    _, pruning = fit(place["StepByStep"]())
    assert pruning.report.reached
    assert len(pruning.report.shrinks) == 4


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(Progressive(), marks=pytest.mark.slow),
        pytest.param(OneShot(), marks=pytest.mark.slow),
        pytest.param(RandomWidths(draws=2), marks=pytest.mark.slow),
        pytest.param(LayerByLayer(), marks=pytest.mark.slow),
        pytest.param(SoftFilterPruning(), marks=pytest.mark.slow),
        pytest.param(Adaptive(), marks=pytest.mark.slow),
        Chex(every=1, widths_by="l1"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_every_strategy_of_the_project_passes_the_kit(strategy):
    check_strategy(strategy)


def problem_of(limit):
    return Problem.of(keras_pcp.build_graph(network()), Limits(max_macs=limit))


@pytest.mark.parametrize("schedule", [linear, cubic, lambda t: t**4], ids=["linear", "cubic", "late"])
def test_the_schedule_goes_equally_far_from_one_moment_to_the_next(schedule):
    fit = FitLength(40_000, 1000, 0.1, 0.6, schedule=schedule)
    steps = spread(problem_of(0.5), fit, 10)
    assert len(steps) == 10
    assert steps[0] == 4000
    assert [fit.progress(step) for step in steps] == pytest.approx([i / 10 for i in range(10)], abs=2e-3)
    targets = [moment.target for moment in moments(steps, fit, Steps(per_epoch=1000))]
    assert targets == pytest.approx([(i + 1) / 10 for i in range(10)], abs=2e-3)


@pytest.mark.parametrize(
    "schedule", [cubic, lambda t: float(t == 1), lambda t: float(t > 0)], ids=["cubic", "late", "early"]
)
def test_moments_rise_and_lie_in_the_pruning_phase_however_short_it_is(schedule):
    half = problem_of(0.5)
    for total in range(5, 60):
        fit = FitLength(total, 5, 0.2, 0.8, schedule=schedule)
        for rounds in (1, 3, 20):
            for steps in (spread(half, fit, rounds), evenly(half, fit, rounds)):
                assert steps == sorted(set(steps))
                assert fit.first <= steps[0] <= steps[-1] < fit.last
                targets = [moment.target for moment in moments(steps, fit, Steps(per_epoch=5))]
                assert targets == sorted(targets)
                assert targets[:-1] == [fit.progress(step) for step in steps[1:]]


def test_nothing_is_pruned_on_a_plateau_of_the_schedule():
    fit = FitLength(40_000, 1000, 0.1, 0.6, schedule=lambda t: max(0.0, 2 * t - 1))
    first, *_ = steps = spread(problem_of(0.5), fit, 10)
    assert first == pytest.approx(14_000, abs=2)  # the middle of the phase
    assert len(steps) == 10


def test_a_long_training_has_a_moment_for_each_round_and_a_short_one_has_few():
    half, quarter = problem_of(0.5), problem_of(0.25)
    rounds = Progressive().rounds(half)
    assert [len(Progressive().when(half, FitLength(n, 100))) for n in (20, 1100, 10**6)] == [2, 4, rounds]
    assert [len(Progressive().when(quarter, FitLength(n, 100))) for n in (20, 512)] == [3, 3]
    assert [len(Iterative().when(half, FitLength(n, 100))) for n in (3, 20, 10**6)] == [2, 4, 4]
    assert len(Progressive().when(half, FitLength(9))) == 8  # of epochs, each may have one


def test_an_iterative_strategy_is_asked_as_often_as_it_says_and_sees_what_is_gone():
    seen_scores = []

    @dataclass(frozen=True)
    class Looking(Iterative):
        def update(self, problem, state, seen):
            scores = seen.scores()
            seen_scores.append({n: int(np.isneginf(s).sum()) for n, s in scores.items()})
            assert {n: len(s) for n, s in scores.items()} == {"first": 8, "second": 8}
            return super().update(problem, state, seen)

    _, pruning = fit(Looking())
    assert [sum(gone.values()) for gone in seen_scores] == sorted(sum(gone.values()) for gone in seen_scores)
    assert sum(seen_scores[-1].values()) > 0
    assert len(pruning.report.shrinks) == len(pruning.report.rounds) >= 3


def test_the_loss_terms_of_a_strategy_hold_until_it_says_otherwise_and_end_with_the_fit():
    model, _ = fit(Decaying(), end=0.9, model=network(optimizer=keras.optimizers.SGD(0.02)))
    plain, _ = fit(OneShot(), end=0.9, model=network(optimizer=keras.optimizers.SGD(0.02)))
    size = [sum(float(np.square(w).sum()) for w in m.trainable_weights) for m in (model, plain)]
    assert size[0] < 0.5 * size[1]
    assert "compute_loss" not in vars(model)


class Stop(keras.callbacks.Callback):
    """Ends a fit in its third epoch, as early stopping does or by an interrupt."""

    def __init__(self, error=None):
        super().__init__()
        self.error, self.zeros = error, None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.zeros = int((self.model.get_layer("second").kernel.numpy() == 0).sum())
            self.model.stop_training = True
            if self.error:
                raise self.error


@dataclass(frozen=True)
class Correcting(Strategy):
    """Numbers the elements of the second kernel when it prunes, and never prunes again."""

    needs = Needs(validation=False, training=True, holds=True)
    how: str = "cut"

    def update(self, problem, state, seen):
        if state:
            return state, None
        keep = just_enough(problem, seen.scores(), scope="local")
        [index] = [i for i, w in enumerate(problem.graph.weights) if w.path.endswith("second/kernel")]
        return keep, Action(keep, how=self.how, weights={index: NUMBERED})


NUMBERED = np.arange(1, 1 + 3 * 3 * 8 * 8, dtype="float32").reshape(3, 3, 8, 8)


def test_weights_that_go_with_a_cut_have_the_shapes_of_the_unpruned_model():
    model, pruning = fit(Correcting(), model=network(optimizer=keras.optimizers.SGD(0.0)))
    kept = pruning.state.keep
    expected = NUMBERED[:, :, kept["first"]][..., kept["second"]]
    assert np.array_equal(model.get_layer("second").kernel.numpy(), expected)


def test_weights_that_go_with_a_hold_come_back_with_the_channels():
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.get_layer("second").kernel.numpy())

    with pytest.warns(UserWarning, match="before pruning reached its limits"):
        model, pruning = fit(Correcting("hold"), callbacks=[Look()], model=network(optimizer=keras.optimizers.SGD(0.0)))
    out = ~pruning.state.keep["first"]
    assert not seen[-1][:, :, out].any()
    assert np.array_equal(seen[-1][:, :, ~out], NUMBERED[:, :, ~out])
    assert np.array_equal(model.get_layer("second").kernel.numpy(), NUMBERED)  # gates are open after the fit


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["stopped", "interrupted"])
def test_a_fit_that_ends_early_leaves_no_channel_held_at_zero(error):
    model, stop = network(), Stop(error)
    pruning = keras_pcp.Pruning(Regrowing(), max_macs=0.5, begin=0.1, end=0.8)

    def run():
        model.fit(*samples(), batch_size=8, epochs=6, verbose=0, callbacks=[pruning, stop])

    if error:
        with pytest.raises(KeyboardInterrupt):
            run()
        with pytest.warns(UserWarning, match="before pruning reached its limits"):
            pruning.on_train_end()
    else:
        with pytest.warns(UserWarning, match="before pruning reached its limits"):
            run()
    kernel = model.get_layer("second").kernel
    assert stop.zeros > 0
    assert kernel.numpy().all()
    assert kernel.constraint is None
    model.fit(*samples(), verbose=0)
    assert kernel.numpy().all()


def test_what_a_strategy_may_not_say_is_an_error_that_names_it():
    @dataclass(frozen=True)
    class Reviving(Strategy):
        needs = Needs(validation=False)

        def rounds(self, problem):
            return 2

        def update(self, problem, state, seen):
            keep = just_enough(problem, seen.scores(), scope="local")
            return state, Action(keep if seen.moment == 0 else problem.nothing_removed())

    with pytest.raises(InvalidArgumentError, match=r"Reviving keeps channels of group 'first' that have been cut"):
        fit(Reviving())

    @dataclass(frozen=True)
    class Undeclared(Strategy):
        action: dict
        needs = Needs(validation=False)

        def update(self, problem, state, seen):
            return state, Action(just_enough(problem, seen.scores(), scope="local"), **self.action)

    for action, need in (({"how": "hold"}, "holds"), ({"correct": True}, "batches")):
        with pytest.raises(InvalidArgumentError, match=rf"Undeclared .* needs = Needs\(..., {need}=True\)"):
            fit(Undeclared(action))

    @dataclass(frozen=True)
    class Idle(Strategy):
        needs = Needs(validation=False)

        def update(self, problem, state, seen):
            return state, Action(seen.kept)

    with pytest.raises(PruningError, match=r"action of Idle at step \d+ cuts nothing.*must return None"):
        fit(Idle())

    @dataclass(frozen=True)
    class Measuring(Strategy):
        needs = Needs(validation=False)

        def update(self, problem, state, seen):
            return seen.evaluate(seen.kept), None

    with pytest.raises(InvalidArgumentError, match="says by `needs` that it needs no validation samples"):
        fit(Measuring())

    @dataclass(frozen=True)
    class Terse(Strategy):
        needs = Needs(validation=False)

        def update(self, problem, state, seen):
            return Action(seen.kept)

    with pytest.raises(InvalidArgumentError, match=r"Terse.update must return two things, .*; got Action\("):
        fit(Terse())

    @dataclass(frozen=True)
    class Single(Terse):
        def loss_terms(self, problem, state):
            return shrinking_weights

    with pytest.raises(InvalidArgumentError, match=r"Single.loss_terms must return a list of functions"):
        fit(Single())

    @dataclass(frozen=True)
    class Forgetful(Strategy):
        needs = Needs(validation=False)

        def when(self, problem, fit):
            return [3, 2]

        def update(self, problem, state, seen):
            return state, None

    with pytest.raises(InvalidArgumentError, match="rising steps"):
        fit(Forgetful())
    with pytest.raises(InvalidArgumentError, match="needs training between its actions"):
        keras_pcp.search_widths(network(), max_macs=0.5, validation_data=samples(), strategy=Regrowing())
    with pytest.raises(InvalidArgumentError, match="strategy must be a strategy"):
        keras_pcp.Pruning("progressive", max_macs=0.5)


def test_the_kit_finds_a_strategy_that_remembers_outside_its_state():
    memory = []

    @dataclass(frozen=True)
    class Outside(Strategy):
        needs = Needs(validation=False)

        def update(self, problem, state, seen):
            memory.append(1)
            rng = np.random.default_rng(len(memory))
            scores = {g.name: rng.random(g.num_channels) for g in problem.graph}
            return state, None if problem.holds(seen.kept) else Action(just_enough(problem, scores, scope="local"))

    with pytest.raises(AssertionError, match="does something else"):
        check_strategy(Outside())


@pytest.mark.slow
def test_the_kit_takes_a_strategy_that_only_watches_if_that_is_said():
    check_strategy(Watching(), reaches=False)
    with pytest.raises(AssertionError, match=r"above the limit .*reaches=False"):
        check_strategy(Watching())

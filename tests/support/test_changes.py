"""Changes happen wholly or not at all, and are undone wholly, on whatever line an exception arises."""

import signal
import sys
import threading
import types

import pytest

from keras_pcp.support import changes
from keras_pcp.support.changes import Journal, all_or_nothing, guarded, temporarily, undone, uninterrupted


@pytest.fixture(autouse=True)
def handler_of_python():
    """Where tests run in the background, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Injected(Exception):
    pass


def raise_on_line(number, files, error=Injected):
    """Returns a trace function that raises on the line of that number, counted in some files, and the count so far."""
    count = [0]

    def local(frame, event, argument):
        if event == "line":
            count[0] += 1
            if count[0] == number:
                sys.settrace(None)
                raise error
        return local

    return (lambda frame, event, argument: local if frame.f_code.co_filename in files else None), count


def with_an_error_on_each_line(run, check):
    """Runs `run`, with an exception on each line of `changes` in turn, and checks what is left; returns the lines."""
    number, files = 0, {changes.__file__, __file__}
    while True:
        number += 1
        tracer, count = raise_on_line(number, files)
        outer, error = sys.gettrace(), None
        sys.settrace(tracer)
        try:
            run()
        except Injected as injected:
            error = injected  # holds its frames, so nothing is cleaned up because they are dropped
        finally:
            sys.settrace(outer)
        assert (error is None) == (count[0] < number)
        check(error)
        if error is None:
            return number - 1


def owner():
    return types.SimpleNamespace(a=1, b=2, items={"c": 3})


def is_old(o):
    return vars(o) == {"a": 1, "b": 2, "items": {"c": 3}}


def is_new(o):
    return vars(o) == {"a": 10, "b": 20, "items": {"c": 30}, "d": 40}


def change(o, journal):
    journal.set(o, "a", 10)
    journal.set(o, "b", 20)
    journal.update(o.items, {"c": 30})
    journal.set(o, "d", 40)


def signals_are_as_before():
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_on_any_line_leaves_all_or_nothing():
    found = []

    def run():
        found.append(o := owner())
        all_or_nothing(lambda journal: change(o, journal))

    def check(error):
        assert not found or is_old(found[-1]) or (is_new(found[-1]))
        assert error or is_new(found[-1])
        assert signals_are_as_before()

    assert with_an_error_on_each_line(run, check) > 40


def test_an_error_on_any_line_of_a_temporary_change_undoes_all_of_it():
    found, inside = [], []

    def block():
        with temporarily(lambda journal: change(found[-1], journal)):
            inside.append(is_new(found[-1]))

    def run():
        found.append(owner())
        guarded(block)

    def check(error):
        assert not found or is_old(found[-1])
        assert all(inside)
        assert signals_are_as_before()

    assert with_an_error_on_each_line(run, check) > 60
    assert len(inside) > 20


def test_a_block_is_undone_when_its_exit_is_not_reached():
    o, held = owner(), []

    def block():
        held.append(temporarily(lambda journal: change(o, journal)))
        held[0].__enter__()
        assert is_new(o)
        raise Injected

    with pytest.raises(Injected):
        guarded(block)
    assert is_old(o)


def test_a_block_that_nothing_holds_any_more_is_undone():
    o = owner()
    temporarily(lambda journal: change(o, journal)).__enter__()
    assert is_old(o)


def test_undoing_twice_is_undoing_once_and_the_first_value_wins():
    o, journal = owner(), Journal()
    journal.set(o, "a", 5)
    journal.set(o, "a", 6)
    ways_back = [*journal._ways_back]
    journal.undo()
    assert o.a == 1
    for way_back in reversed(ways_back):
        way_back()
    assert is_old(o)
    o.a = 7
    journal.undo()
    assert o.a == 7


def test_what_a_journal_notes_in_a_block_is_undone_at_its_end_unless_committed():
    owner = types.SimpleNamespace(value=0)
    with undone() as journal:
        journal.set(owner, "value", 1)
        journal.commit()
    with undone() as journal:
        journal.set(owner, "value", 2)
    assert owner.value == 1


def test_an_attribute_of_the_class_comes_into_view_again():
    class Owner:
        width = 4

        @property
        def half(self):
            return self.width / 2

        @half.setter
        def half(self, value):
            self.width = 2 * value

    o = Owner()
    with temporarily(lambda journal: journal.set(o, "width", 6)):
        assert o.width == 6
    assert o.width == 4
    assert vars(o) == {}
    with temporarily(lambda journal: journal.set(o, "half", 6)):
        assert o.width == 12
    assert o.width == 4


def test_signals_wait_until_a_function_is_done():
    seen = []

    def inner():
        uninterrupted(lambda: signal.raise_signal(signal.SIGINT))
        seen.append("written")

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(inner)
    assert seen == ["written"]
    assert signals_are_as_before()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_every_handler_of_a_signal_that_waits_is_called():
    seen = []

    def alarm(number, frame):
        seen.append(number)
        raise TimeoutError

    def write():
        signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGINT)
        seen.append("written")

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with pytest.raises(KeyboardInterrupt) as found:
            uninterrupted(write)
        assert isinstance(found.value.__context__, TimeoutError)
        assert seen == ["written", signal.SIGALRM]
        assert signal.getsignal(signal.SIGALRM) is alarm
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_signal_in_the_middle_of_a_block_acts_at_once_and_one_while_undoing_acts_after_it():
    o, seen = owner(), []

    def middle():
        signal.raise_signal(signal.SIGINT)
        seen.append("not reached")

    with pytest.raises(KeyboardInterrupt), temporarily(lambda journal: change(o, journal)):
        middle()
    assert is_old(o)
    assert seen == []

    def late(journal):
        journal.set(o, "a", 10)
        journal.note(lambda: signal.raise_signal(signal.SIGINT))

    with pytest.raises(KeyboardInterrupt), temporarily(late):
        seen.append("whole block")
    assert is_old(o)
    assert seen == ["whole block"]


def test_other_threads_are_left_alone():
    o, found = owner(), []

    def run():
        all_or_nothing(lambda journal: change(o, journal))
        found.append(signals_are_as_before())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert is_new(o)
    assert found == [True]

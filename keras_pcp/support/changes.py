"""Changes to a model that happen completely or not at all, whatever interrupts them.

- Before each change, a `Journal` notes how to undo it. To undo means to restore what was there before. So a journal can be
  undone at any point, and again if undoing was interrupted.
- Signals that Python handles, such as that of Ctrl-C, wait while something is written or restored. In between, they take
  effect at once.
- An exception can still come on any line (out of memory, an interrupt sent to a thread). So each journal is undone in two
  places, one around the other: the outer one catches an exception on a line of the inner one.
"""

import inspect
import io
import operator
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Journal:
    """A list of changes and how to undo them; each is noted before the change.

    Example:
        >>> import types
        >>> owner, journal = types.SimpleNamespace(width=4), Journal()
        >>> journal.set(owner, "width", 2)
        >>> journal.undo()
        >>> owner.width
        4
    """

    def __init__(self):
        self._ways_back: list[Callable[[], Any]] = []

    def note(self, way_back: Callable[[], Any]) -> None:
        """Notes how to undo the next change. Calling `way_back` twice must have the same effect as calling it once."""
        self._ways_back.append(way_back)

    def remember(self, owner: Any, name: str) -> None:
        """Notes the current value of an attribute."""
        written_by = getattr(type(inspect.getattr_static(type(owner), name, None)), "__set__", None)
        if written_by or name in vars(owner):
            self.note(partial(setattr, owner, name, getattr(owner, name)))
        else:
            self.note(partial(_remove, owner, name))

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute."""
        self.remember(owner, name)
        setattr(owner, name, value)

    def update(self, mapping: MutableMapping, items: Mapping) -> None:
        """Replaces items of a mapping. The keys must exist already."""
        for key, value in items.items():
            self.note(partial(operator.setitem, mapping, key, mapping[key]))
            mapping[key] = value

    def keep(self, variables: Iterable[Any]) -> None:
        """Notes the current values of variables, bit for bit."""
        for variable in variables:
            self.note(partial(variable.assign, variable.numpy()))

    def assign(self, values: Iterable[tuple[Any, Any]]) -> None:
        """Assigns other values of the same shape to variables."""
        values = list(values)
        self.keep(variable for variable, _ in values)
        for variable, value in values:
            variable.assign(value)

    def undo(self) -> None:
        """Undoes all changes, the last one first, and empties the journal."""
        uninterrupted(self._go_back)

    def _go_back(self) -> None:
        for way_back in reversed(self._ways_back):
            way_back()
        self.commit()

    def commit(self) -> None:
        """Makes the changes final."""
        self._ways_back.clear()


def all_or_nothing(change: Callable[[Journal], T]) -> T:
    """Runs `change(journal)` completely or, if anything goes wrong, not at all. Signals wait until it is done."""
    journal = Journal()

    def write() -> T:
        result = change(journal)
        journal.commit()
        return result

    try:
        try:
            return uninterrupted(write)
        except BaseException:
            journal.undo()
            raise
    except BaseException:
        journal.undo()
        raise


def _remove(owner: Any, name: str) -> None:
    if name in vars(owner):
        delattr(owner, name)


def temporarily(change: Callable[[Journal], T]) -> AbstractContextManager[T]:
    """Makes the changes of `change(journal)` for the time of a `with` block; undoes at its end what the journal notes."""
    return _Scope(_temporarily(change))


def undone() -> AbstractContextManager[Journal]:
    """Inside the block, changes that are noted in its journal hold; at its end they are undone, unless committed."""
    return temporarily(lambda journal: journal)


class _Scope(io.IOBase):
    """A block that ends by closing a generator.

    A signal can act on the first line of any Python function, even of an `__exit__`, and then nothing would be undone. The
    `__exit__` of this base class is compiled and only calls `close`, which here is that of the generator. So the first
    Python code to run is that of the generator, inside its `try`.
    """

    def __init__(self, steps: Generator[Any, None, None]):
        super().__init__()
        self.steps = steps
        self.close = steps.close  # type: ignore[method-assign]  # on purpose, as said above

    def __enter__(self) -> Any:
        return next(self.steps)


def _temporarily(change: Callable[[Journal], T]) -> Generator[T, None, None]:
    journal, pending = Journal(), _pending()
    try:
        try:
            pending.append(journal)
            result = uninterrupted(lambda: change(journal))
            yield result
        finally:
            journal.undo()
    except BaseException:
        journal.undo()
        raise
    finally:
        if journal in pending:
            pending.remove(journal)


def guarded(function: Callable[[], T]) -> T:
    """Runs a function. If it fails, undoes what the blocks of `temporarily` in it have not undone.

    That happens if an exception comes between the last line of a block and the call that ends it.
    """
    outer = set(_pending())
    try:
        return function()
    except BaseException:
        for journal in reversed(_pending()):
            if journal not in outer:
                journal.undo()
        raise


_LOCAL = threading.local()


def _pending() -> list[Journal]:
    """Returns the journals of the blocks that this thread is inside."""
    if not hasattr(_LOCAL, "pending"):
        _LOCAL.pending = []
    return _LOCAL.pending


_DEFERRING: list[bool] = []  # not empty while the main thread defers signals


def uninterrupted(function: Callable[[], T]) -> T:
    """Runs a function while all signals with a Python handler wait; they are handled when it is done.

    Handlers run only in the main thread, so in another thread there is nothing to do.
    """
    if _DEFERRING or threading.current_thread() is not threading.main_thread():
        return function()
    handlers: dict[int, Callable] = {n: h for n in signal.valid_signals() if callable(h := signal.getsignal(n))}
    arrived: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _DEFERRING.clear()

    try:
        try:
            _DEFERRING.append(True)
            for number in handlers:
                signal.signal(number, arrived.setdefault)
            return function()
        finally:
            put_back()
            _handle([(handlers[number], number, frame) for number, frame in arrived.items()])
    except BaseException:
        put_back()
        raise


def _handle(waiting: list[tuple[Callable, int, Any]]) -> None:
    if waiting:
        try:
            handler, number, frame = waiting[0]
            handler(number, frame)
        finally:
            _handle(waiting[1:])

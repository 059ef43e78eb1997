"""The checkpoint of a search for widths, and the check that it belongs to the same search."""

import dataclasses
import dis
import functools
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from keras_pcp.criteria import BY_NAME
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.fit.run import Run
from keras_pcp.support import files


def read(file: Path, identity: Mapping[str, Any], run: Run) -> None:
    """Lets a run go on from its checkpoint.

    Args:
        file: the checkpoint.
        identity: everything that the search depends on, JSON-ready.
        run: the run, at its beginning.

    Raises:
        InvalidArgumentError: the file is damaged, holds something else, or belongs to another search.
    """
    data = _content(file)
    other = [key for key, value in identity.items() if data.get(key) != value]
    if other:
        raise InvalidArgumentError(
            f"checkpoint {file} belongs to another search: its {', '.join(other)} differ (there: "
            f"{ {k: data.get(k) for k in other} }, here: { {k: identity[k] for k in other} }). Delete it to start again"
        )
    try:
        run.from_json(data["state"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def write(file: Path, identity: Mapping[str, Any], run: Run) -> None:
    """Writes the checkpoint of a search.

    Raises:
        FileError: the system cannot write it; the previous checkpoint is unchanged.
    """
    data = {**identity, "state": run.to_json()}
    files.write(file, json.dumps({**data, "digest": _digest_of(data)}))


def identify(function: Any, what: str = "criterion") -> str:
    """Returns a text that identifies a function, and is the same in another process for a function that computes the same.

    It depends on the code of functions, their defaults, and the values that they close over or read as globals.

    Args:
        function: the criterion, or another function that the user passes.
        what: its name in messages.

    Raises:
        InvalidArgumentError: the function is, or uses, an object that cannot be identified in this way.

    Example:
        >>> from keras_pcp.criteria import l1
        >>> identify(l1)
        'l1'
        >>> identify(lambda group, statistics: 1) == identify(lambda group, statistics: 2)
        False
    """
    for name, known in BY_NAME.items():
        if function is known:
            return name
    try:
        described = _Describer().describe(function)
    except _Unknown as error:
        raise InvalidArgumentError(
            f"with a checkpoint, {what} {function!r} must be one that can be recognized later, but a {error} has no "
            "contents to recognize it by. Use a function, functools.partial or dataclass that uses only numbers, arrays and "
            "functions, or pass no checkpoint"
        ) from None
    named = getattr(function, "func", function)
    return f"{getattr(named, '__qualname__', type(named).__qualname__)} {_hashed(described)[:16]}"


class _Unknown(Exception):
    pass


class _Describer:
    """Describes values as text; functions with everything that they use."""

    def __init__(self):
        self.known: dict[int, tuple[Any, str]] = {}  # holds the values, so that no id is reused

    def describe(self, value: Any) -> str:
        """Returns a text for a value."""
        if value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if id(value) not in self.known:
            self.known[id(value)] = value, "itself"  # until it is known: a function may refer to itself
            self.known[id(value)] = value, _hashed(self._written_out(value))
        return self.known[id(value)][1]

    def _written_out(self, value: Any) -> str:
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            return f"{value.dtype} {np.shape(value)} {np.asarray(value).tobytes().hex()}"
        if isinstance(value, tuple | list):
            return f"{type(value).__name__} {[self.describe(v) for v in value]}"
        if isinstance(value, set | frozenset):
            return f"set {sorted(self.describe(v) for v in value)}"
        if isinstance(value, Mapping):
            return f"dict {[(self.describe(k), self.describe(v)) for k, v in value.items()]}"
        if isinstance(value, ModuleType) or _is_installed(value):
            return _name(value)
        if isinstance(value, functools.partial):
            return f"partial {self.describe((value.func, value.args, dict(value.keywords)))}"
        if isinstance(value, MethodType):
            return f"method {self.describe((value.__self__, value.__func__))}"
        if isinstance(value, FunctionType):
            parts = (value.__code__, value.__defaults__, value.__kwdefaults__, _closure(value), _globals(value))
            return f"function {self.describe(parts)}"
        if isinstance(value, CodeType):
            return f"code {value.co_code.hex()} {self.describe((value.co_consts, value.co_names, value.co_varnames))}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            call = [vars(c)["__call__"] for c in type(value).__mro__ if "__call__" in vars(c)][:1]
            return f"{_name(type(value))} {self.describe((fields, call))}"
        raise _Unknown(type(value).__qualname__)


def _closure(function: FunctionType) -> list[Any]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not filled yet
            cells.append(None)
    return cells


def _globals(function: FunctionType) -> dict[str, Any]:
    names, codes = set(), [function.__code__]
    for code in codes:
        names |= {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
    return {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}


def _is_installed(value: Any) -> bool:
    """Returns whether the name identifies a function or class: it belongs to Python or to an installed package."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    try:
        found = functools.reduce(getattr, value.__qualname__.split("."), module)
    except AttributeError:  # in some versions, ufuncs of NumPy have no qualified name
        found = getattr(np, getattr(value, "__name__", ""), None)
        return found is value
    origin = getattr(module, "__file__", None) or ""
    places = (str(Path(__file__).parents[1]), str(Path(dis.__file__).parent))
    return found is value and (not origin or origin.startswith(places) or "site-packages" in origin)


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise InvalidArgumentError(f"cannot read checkpoint {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(data, dict) or "state" not in data:
        raise _damaged(file, "it does not hold the state of a search")
    if data.pop("digest", None) != _digest_of(data):
        raise _damaged(file, "its contents were changed, or another version wrote it")
    return data


def _digest_of(data: Mapping[str, Any]) -> str:
    return _hashed(json.dumps(data, sort_keys=True))


def _damaged(file: Path, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{file} is not a valid checkpoint of a search ({reason[:200]}). Delete it to start again, or name another file"
    )


def digest(arrays: Sequence[np.ndarray | None]) -> str:
    """Returns a digest of the contents of arrays."""
    found = hashlib.sha256()
    for array in (a for a in arrays if a is not None):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()

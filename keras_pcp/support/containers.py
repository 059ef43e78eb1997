"""Values inside nested containers."""

from typing import Any


def replaced_at(container: Any, path: tuple, value: int) -> Any:
    """Returns a copy of a container with another value at a path; the original stays as it is.

    A path consists of sequence indices, keys, and the names `start` and `stop` of a slice.

    Example:
        >>> replaced_at((None, [slice(0, 4)]), (1, 0, "stop"), 2)
        (None, [slice(0, 2, None)])
    """
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(container, slice):
        parts = {k: getattr(container, k) for k in ("start", "stop", "step")}
        return slice(*{**parts, key: value}.values())
    if isinstance(container, dict):
        return {**container, key: replaced_at(container[key], rest, value)}
    items = list(container)
    items[key] = replaced_at(items[key], rest, value)
    return items if isinstance(container, list) else tuple(items)

"""Shortens names and numbers for messages and tables."""

import math
from collections.abc import Iterable, Sequence


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its class if it has none.

    Example:
        >>> first_line(ValueError("no.\\nA page of text")), first_line(KeyError())
        ('no', 'KeyError')
    """
    return str(error).strip().partition("\n")[0][:300].rstrip(".") or type(error).__name__


def shorten(names: Iterable[str], most: int = 5) -> str:
    """Returns the first names of a list, for messages.

    Example:
        >>> shorten("abcdefg", most=2)
        'a, b, ... (7 in all)'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def shorten_middle(name: str, width: int) -> str:
    """Returns a name cut in the middle to at most `width` characters.

    Example:
        >>> shorten_middle("backbone_stage3_block12_expand", 16)
        'backbone..expand'
    """
    if len(name) <= width:
        return name
    return f"{name[: width // 2]}..{name[len(name) - (width - 1) // 2 + 1 :]}"


def shorten_apart(names: Sequence[str], width: int) -> list[str]:
    """Returns names cut to `width`: in the middle, or before the first difference if they would look the same.

    Example:
        >>> shorten_apart(["net_stage_1_block_1_conv", "net_stage_2_block_1_conv", "net_head"], 17)
        ['..1_block_1_conv', '..2_block_1_conv', 'net_head']
    """
    cut = {name: shorten_middle(name, width) for name in names}
    alike: dict[str, list[str]] = {}
    for name, short in cut.items():
        alike.setdefault(short, []).append(name)
    for same in alike.values():
        if len(same) > 1:
            first, last = min(same), max(same)
            differ = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
            start = first[:differ].rfind("_") + 1
            cut.update({name: ".." + shorten_middle(name[start:], width - 2) for name in same})
    return [cut[name] for name in names]


def human_number(value: float) -> str:
    """Returns a number with a unit, at most 7 characters up to 10^18; NaN gives `unknown`.

    Example:
        >>> [human_number(x) for x in (0, 999, 1234, 999_950, 3.0e8, float("nan"))]
        ['0', '999', '1.2 k', '1.0 M', '300.0 M', 'unknown']
    """
    if math.isnan(value):
        return "unknown"
    if value < 999.5:
        return f"{value:.0f}"
    for unit in "kMGT":
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:,.1f} P"

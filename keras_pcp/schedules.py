"""Schedules: the progress of pruning as a function of the progress of training.

A schedule is any callable from [0, 1] (begin to end of the pruning phase) to [0, 1] (nothing pruned to limit reached).
"""

import math
from collections.abc import Callable

from keras_pcp.support import checks


def linear(t: float) -> float:
    """Prunes in equal steps: returns t.

    Example:
        >>> linear(0.25)
        0.25
    """
    return checks.number("t", t, "[0, 1]")


def cubic(t: float) -> float:
    """Prunes in large steps first and small steps last: returns 1 - (1 - t)^3.

    References:
        Zhu & Gupta, To prune, or not to prune, 2017, arXiv 1710.01878, equation 1.

    Example:
        >>> cubic(0.5)
        0.875
    """
    return 1 - (1 - checks.number("t", t, "[0, 1]")) ** 3


def check_schedule(schedule: Callable[[float], float]) -> None:
    """Raises InvalidArgumentError unless a schedule gives numbers in [0, 1] that never fall and end at 1.

    Errors that the schedule itself raises pass through.
    """
    checks.function(
        "schedule", schedule, "a function from [0, 1] to [0, 1], such as keras_pcp.schedules.cubic", takes=1
    )
    latest = 0.0
    for t in (i / 16 for i in range(17)):
        given = schedule(t)
        try:
            value = float(given)
        except (TypeError, ValueError):
            raise checks.refusal(f"schedule({t})", "a number in [0, 1]", given) from None
        if not latest - 1e-6 <= value <= 1 + 1e-6:  # NaN, too
            raise checks.refusal(f"schedule({t})", f"a number in [{latest}, 1], since channels do not come back", given)
        latest = value
    if not math.isclose(latest, 1.0, rel_tol=1e-6):
        raise checks.refusal("schedule(1.0)", "1.0", given)

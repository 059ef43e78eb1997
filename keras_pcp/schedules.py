"""Schedules: how far pruning should have come, as a function of how far training has come.

A schedule is any callable from [0, 1] (begin to end of the pruning phase) to [0, 1] (nothing pruned to limit reached).
"""


def linear(t: float) -> float:
    """Equal steps.

    Example:
        >>> linear(0.25)
        0.25
    """
    return t


def cubic(t: float) -> float:
    """Large steps first, small steps last: 1 - (1 - t)^3.

    References:
        Zhu & Gupta, To prune, or not to prune, 2017, arXiv 1710.01878, equation 1.

    Example:
        >>> cubic(0.5)
        0.875
    """
    return 1 - (1 - t) ** 3

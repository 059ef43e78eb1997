"""The table of figures before and after."""

import math
from collections.abc import Mapping


def compared(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Returns a table of figures and their ratios; what cannot be counted is left out.

    Example:
        >>> print(compared({"test accuracy": 0.9, "MACs": 2000, "parameters": 10}, {"test accuracy": 0.88, "MACs": 1000,
        ...     "parameters": 4}))
                               before           after   ratio
        test accuracy          0.9000          0.8800   0.978
        MACs                    2,000           1,000   0.500
        parameters                 10               4   0.400
    """
    wide = max(map(len, before))
    lines = [f"{'':<{wide}} {'before':>15} {'after':>15}   ratio"]
    for name, old in before.items():
        if not math.isnan(old):
            style = ".4f" if "accuracy" in name else ",.0f"
            lines.append(
                f"{name:<{wide}} {old:>15{style}} {after[name]:>15{style}}   {after[name] / old if old else 1:.3f}"
            )
    return "\n".join(lines)

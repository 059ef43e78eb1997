"""Schedules of how much is pruned when."""

import numpy as np

from keras_pcp.schedules import cubic, linear


def test_schedules_begin_at_nothing_and_end_at_everything():
    for schedule in (linear, cubic):
        values = [schedule(t) for t in np.linspace(0, 1, 11)]
        assert values[0] == 0
        assert values[-1] == 1
        assert values == sorted(values)

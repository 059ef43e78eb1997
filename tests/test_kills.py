"""A super-net that is killed goes on; here a few kills, `python tests/kills.py` has more."""

import kills
import pytest


@pytest.mark.slow
def test_a_killed_super_net_goes_on_to_the_same_result():
    assert kills.killed(2) == {"suite": "kills", "count": 2, "ended": 1, "failed": 0}

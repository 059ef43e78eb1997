"""Limits on what a model may cost."""

import pytest

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.select.problem import Limits


@pytest.mark.parametrize("value", [1.0, 0.0, -0.1, 2.5, 0, -5, True, "half", float("nan")])
def test_limits_out_of_range_are_refused(value):
    with pytest.raises(InvalidArgumentError, match="max_params"):
        Limits(max_params=value)

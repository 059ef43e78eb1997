"""An interrupt on any line of an operation that changes a model leaves the model wholly old or wholly new.

Here some of the lines; `python tests/interrupts.py --every-line` takes all of them.
"""

import interrupts
import pytest


@pytest.mark.parametrize(
    ("name", "stride", "offset"),
    [
        ("shrink", 997, 17),
        pytest.param("masked", 131, 5, marks=pytest.mark.slow),
        pytest.param("reestimate_batch_norm", 239, 7, marks=pytest.mark.slow),
        pytest.param("corrected_cut", 997, 17, marks=pytest.mark.slow),
        pytest.param("supernet_search", 2503, 17, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_leaves_the_model_old_or_new(name, stride, offset):
    _, found, torn = interrupts.every_line(name, stride, offset, use_every=10)
    assert torn == []
    assert sum(found.values()) > 6

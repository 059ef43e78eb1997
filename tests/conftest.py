import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import pytest


def pytest_collection_modifyitems(items):
    """Skips the example of a class that old Keras cannot make."""
    import keras

    if not hasattr(keras, "distillation"):
        for item in items:
            if item.name == "keras_pcp.repair.distillation.Distillation":
                item.add_marker(pytest.mark.skip("keras.distillation came with Keras 3.12"))


@pytest.fixture
def doubles():
    """Models made in the test compute in float64, so that finite differences are exact enough."""
    import keras

    for name in ("float64", "float32"):
        keras.config.set_floatx(name)
        keras.config.set_dtype_policy(name)
        if name == "float64":
            yield


_blocks = 0  # of memory, after graphs were freed last


@pytest.fixture(autouse=True, scope="module")
def _without_leftovers_of_other_modules():
    yield
    _free_graphs()


@pytest.fixture(autouse=True)
def _without_leftovers_of_many_tests():
    yield
    if sys.getallocatedblocks() > _blocks + 500_000:
        _free_graphs()


def _free_graphs():
    from leftovers import free_graphs

    global _blocks
    free_graphs()
    _blocks = sys.getallocatedblocks()

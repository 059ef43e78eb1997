"""Checks for what you add to keras_pcp, for use in your own tests."""

from keras_pcp.testing.criterion import check_criterion
from keras_pcp.testing.rule import check_rule
from keras_pcp.testing.strategy import check_strategy

__all__ = ["check_criterion", "check_rule", "check_strategy"]

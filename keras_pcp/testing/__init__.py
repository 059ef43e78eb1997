"""Checks for custom criteria, rules and strategies, to use in your tests."""

from keras_pcp.testing.criterion import check_criterion
from keras_pcp.testing.rule import check_rule
from keras_pcp.testing.strategy import check_strategy

__all__ = ["check_criterion", "check_rule", "check_strategy"]

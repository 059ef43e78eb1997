"""Pruning strategies, one paper per file. They work on graphs, numbers and selections, without Keras or surgery."""

from keras_pcp.select.problem import Problem
from keras_pcp.select.select import just_enough
from keras_pcp.strategies.adaptive import Adaptive
from keras_pcp.strategies.baselines import LayerByLayer, OneShot, RandomWidths
from keras_pcp.strategies.chex import Chex
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.strategies.protocol import Action, FitLength, Needs, Observation, Strategy
from keras_pcp.strategies.rounds import Attempt, Evaluation, Round
from keras_pcp.strategies.soft_filter_pruning import SoftFilterPruning
from keras_pcp.support.batch import Batch

__all__ = [
    "Action",
    "Adaptive",
    "Attempt",
    "Batch",
    "Chex",
    "Evaluation",
    "FitLength",
    "LayerByLayer",
    "Needs",
    "Observation",
    "OneShot",
    "Problem",
    "Progressive",
    "RandomWidths",
    "Round",
    "SoftFilterPruning",
    "Strategy",
    "just_enough",
]

"""Pruning strategies, one paper per file. They work on graphs, numbers and selections, without Keras or surgery."""

from keras_pcp.strategies.baselines import LayerByLayer, OneShot, RandomWidths
from keras_pcp.strategies.chex import Chex
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.strategies.protocol import Action, FitLength, Needs, Observation, Strategy
from keras_pcp.strategies.rounds import Attempt, Evaluation, Round
from keras_pcp.strategies.soft_filter_pruning import SoftFilterPruning

__all__ = [
    "Action",
    "Attempt",
    "Chex",
    "Evaluation",
    "FitLength",
    "LayerByLayer",
    "Needs",
    "Observation",
    "OneShot",
    "Progressive",
    "RandomWidths",
    "Round",
    "SoftFilterPruning",
    "Strategy",
]

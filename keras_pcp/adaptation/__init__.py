"""Unsupervised domain adaptation: trains and prunes networks for a domain without labels."""

from keras_pcp.adaptation.dann import DANN, build_dann
from keras_pcp.adaptation.discrepancy import MeanDiscrepancy, discrepancy_loss
from keras_pcp.adaptation.pseudo_labels import PseudoLabels
from keras_pcp.adaptation.reversal import AnnealedLearningRate, GradientReversal, ReversalSchedule

__all__ = [
    "DANN",
    "AnnealedLearningRate",
    "GradientReversal",
    "MeanDiscrepancy",
    "PseudoLabels",
    "ReversalSchedule",
    "build_dann",
    "discrepancy_loss",
]

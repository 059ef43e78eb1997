"""keras_pcp prunes channels out of Keras 3 models while they train, and exports them to LiteRT.

model.fit(x, y, callbacks=[keras_pcp.ProgressivePruning(max_macs=0.5, validation_data=(xv, yv))])
keras_pcp.export_litert(model, "small.tflite")
"""

from keras_pcp import criteria, errors, schedules
from keras_pcp.adaptation.dann import DANN, build_dann
from keras_pcp.adaptation.discrepancy import MeanDiscrepancy, discrepancy_loss
from keras_pcp.adaptation.pseudo_labels import PseudoLabels
from keras_pcp.adaptation.reversal import AnnealedLearningRate, GradientReversal, ReversalSchedule
from keras_pcp.blocks import inline_blocks
from keras_pcp.callbacks import ProgressivePruning
from keras_pcp.channels import ChannelGraph, ChannelGroup, Selection
from keras_pcp.cost import Cost, count_cost
from keras_pcp.criteria import score_channels
from keras_pcp.errors import PruningError
from keras_pcp.export import LiteRTFile, export_litert, measure_latency
from keras_pcp.graph import build_graph
from keras_pcp.inspection import Inspection, inspect_graph
from keras_pcp.live import shrink
from keras_pcp.masks import masked
from keras_pcp.recalibration import recalibrate
from keras_pcp.reconstruction import Reconstruction, reconstruct
from keras_pcp.recovery import Distillation
from keras_pcp.report import PruningReport
from keras_pcp.rules import register_rule
from keras_pcp.selection import select_by_cost, select_by_ratio
from keras_pcp.strategies.controls import LayerByLayer, OneShot, RandomWidths
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.surgery import prune_model, widen_model
from keras_pcp.version import __version__
from keras_pcp.width_search import search_widths

__all__ = [
    "DANN",
    "AnnealedLearningRate",
    "ChannelGraph",
    "ChannelGroup",
    "Cost",
    "Distillation",
    "GradientReversal",
    "Inspection",
    "LayerByLayer",
    "LiteRTFile",
    "MeanDiscrepancy",
    "OneShot",
    "Progressive",
    "ProgressivePruning",
    "PruningError",
    "PruningReport",
    "PseudoLabels",
    "RandomWidths",
    "Reconstruction",
    "ReversalSchedule",
    "Selection",
    "__version__",
    "build_dann",
    "build_graph",
    "count_cost",
    "criteria",
    "discrepancy_loss",
    "errors",
    "export_litert",
    "inline_blocks",
    "inspect_graph",
    "masked",
    "measure_latency",
    "prune_model",
    "recalibrate",
    "reconstruct",
    "register_rule",
    "schedules",
    "score_channels",
    "search_widths",
    "select_by_cost",
    "select_by_ratio",
    "shrink",
    "widen_model",
]

from . import adaptation, criteria, errors, plots, schedules, strategies, testing
from .adaptation.dann import build_dann
from .adaptation.pseudo_labels import PseudoLabels
from .adaptation.reversal import GradientReversal
from .criteria import score_channels
from .deliver.latency import measure_latency
from .deliver.litert import export_litert
from .deliver.report import PruningReport
from .errors import PruningError
from .fit.callback import AdaptivePruning, ProgressivePruning, Pruning
from .fit.metric import Measuring
from .graph.blocks import inline_blocks
from .graph.build import build_graph
from .graph.channel_graph import ChannelGraph, inspect_graph
from .graph.model_cost import count_cost
from .graph.rules import register_rule
from .graph.selection import Selection
from .repair.batch_norm import reestimate_batch_norm
from .repair.distillation import Distillation
from .repair.least_squares import refit
from .search.widths import search_widths
from .select.select import select_by_cost, select_by_ratio
from .supernet.model import StagewiseSupernet
from .surgery.copies import prune_model, widen_model
from .surgery.in_place import shrink
from .surgery.masks import masked

__all__ = [
    "AdaptivePruning",
    "ChannelGraph",
    "Distillation",
    "GradientReversal",
    "Measuring",
    "ProgressivePruning",
    "Pruning",
    "PruningError",
    "PruningReport",
    "PseudoLabels",
    "Selection",
    "StagewiseSupernet",
    "adaptation",
    "build_dann",
    "build_graph",
    "count_cost",
    "criteria",
    "errors",
    "export_litert",
    "inline_blocks",
    "inspect_graph",
    "masked",
    "measure_latency",
    "plots",
    "prune_model",
    "reestimate_batch_norm",
    "refit",
    "register_rule",
    "schedules",
    "score_channels",
    "search_widths",
    "select_by_cost",
    "select_by_ratio",
    "shrink",
    "strategies",
    "testing",
    "widen_model",
]

__version__: str

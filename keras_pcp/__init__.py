from keras_pcp import errors, internals, schedules, trace
from keras_pcp.callbacks import ProgressivePruning
from keras_pcp.channels import ChannelGraph, ChannelGroup, Selection
from keras_pcp.cost import Cost, count_cost
from keras_pcp.criteria import score_channels
from keras_pcp.export import LiteRTFile, export_litert, measure_latency
from keras_pcp.graph import build_graph
from keras_pcp.live import shrink
from keras_pcp.masks import masked
from keras_pcp.strategies.progressive import Progressive
from keras_pcp.report import PruningReport
from keras_pcp.rules import register_rule
from keras_pcp.selection import select_by_cost, select_by_ratio
from keras_pcp.surgery import prune_model, widen_model

"""Pruning strategies, one paper per file. They know neither Keras nor surgery, only graphs, numbers and selections."""

from keras_pcp.strategies.baselines import LayerByLayer, OneShot, RandomWidths
from keras_pcp.strategies.progressive import Progressive

__all__ = ["LayerByLayer", "OneShot", "Progressive", "RandomWidths"]

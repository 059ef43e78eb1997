"""Frees graphs that TensorFlow leaves behind.

TensorFlow keeps the graph of every function that was traced inside of another one, and of every branch of a condition,
after the functions themselves are gone: about 22,000 objects for one `fit`. The garbage collector does not see why, and
each of its passes, and each search for living models, takes longer and longer.
"""

import gc

import keras
import tensorflow as tf
from tensorflow.python.framework import func_graph

_PARTS = (tf.Operation, tf.Tensor)
_BRANCHES = ("_true_graph", "_false_graph", "_cond_graph", "_body_graph")


def free_graphs() -> int:
    """Takes apart the graphs that nothing uses any more; returns how many."""
    keras.backend.clear_session()
    gc.collect()
    graphs = {id(g): g for g in gc.get_objects() if isinstance(g, func_graph.FuncGraph)}
    used = set()
    for owner in gc.get_referrers(*graphs.values()):
        if owner is graphs or isinstance(owner, _PARTS) or (type(owner) is dict and any(k in owner for k in _BRANCHES)):
            continue
        used |= {id(thing) for thing in gc.get_referents(owner)} & graphs.keys()
    while inner := {i for i, g in graphs.items() if i not in used and id(g.outer_graph) in used}:
        used |= inner
    left = [g for i, g in graphs.items() if i not in used]
    for graph in left:
        func_graph.dismantle_func_graph(graph)
    return len(left)

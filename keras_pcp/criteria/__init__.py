"""Importance scores of channels: one paper per file, higher = keep.

A criterion is any callable `(group, statistics) -> float array (group.num_channels,)`. `keras_pcp.statistics.Statistics`
shows what it can use. Mark a criterion that uses gradients or features with `needs_data`. Scores are compared within a
group; selections with scope "global" also compare them across groups. `keras_pcp.testing.check_criterion` checks a custom
criterion.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_pcp.criteria.activation import apoz, mean_activation
from keras_pcp.criteria.chip import Chip
from keras_pcp.criteria.control import random
from keras_pcp.criteria.dead_probability import dead_probability
from keras_pcp.criteria.geometric_median import fpgm
from keras_pcp.criteria.group_fisher import GroupFisher
from keras_pcp.criteria.hrank import hrank
from keras_pcp.criteria.lasso import lasso
from keras_pcp.criteria.magnitude import group_l1, l1, l2
from keras_pcp.criteria.obd import obd
from keras_pcp.criteria.similarity import cosine, least_distance, orthogonality, reciprocal
from keras_pcp.criteria.slimming import bn_scale
from keras_pcp.criteria.taylor import TaylorGate, taylor
from keras_pcp.criteria.thinet import thinet
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.build import check_fits
from keras_pcp.graph.channel_graph import ChannelGraph
from keras_pcp.graph.channels import ChannelGroup, check_scores
from keras_pcp.statistics import Statistics, needs_data
from keras_pcp.support import checks
from keras_pcp.support.data import check_source
from keras_pcp.support.models import check_finite

__all__ = [
    "BY_NAME",
    "Chip",
    "Criterion",
    "GroupFisher",
    "Statistics",
    "TaylorGate",
    "apoz",
    "bn_scale",
    "cosine",
    "dead_probability",
    "fpgm",
    "get",
    "group_l1",
    "hrank",
    "l1",
    "l2",
    "lasso",
    "least_distance",
    "mean_activation",
    "needs_data",
    "obd",
    "orthogonality",
    "random",
    "reciprocal",
    "score_channels",
    "taylor",
    "thinet",
]

Criterion = Callable[[ChannelGroup, Statistics], np.ndarray]

BY_NAME: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "group_l1": group_l1,
    "bn_scale": bn_scale,
    "dead_probability": dead_probability,
    "fpgm": fpgm,
    "least_distance": least_distance,
    "cosine": cosine,
    "orthogonality": orthogonality,
    "reciprocal": reciprocal,
    "taylor": taylor,
    "taylor_gate": TaylorGate(),
    "group_fisher": GroupFisher(),
    "group_fisher_macs": GroupFisher("macs"),
    "group_fisher_memory": GroupFisher("memory"),
    "obd": obd,
    "mean_activation": mean_activation,
    "apoz": apoz,
    "hrank": hrank,
    "chip": Chip(),
    "lasso": lasso,
    "thinet": thinet,
    "random": random,
}


def get(criterion: str | Criterion) -> Criterion:
    """Returns the criterion for a name, or the callable itself."""
    if isinstance(criterion, str) and criterion in BY_NAME:
        return BY_NAME[criterion]
    return checks.function(
        "criterion", criterion, f"a function (group, statistics) or one of {sorted(BY_NAME)}", takes=2
    )


def score_channels(
    model: keras.Model,
    graph: ChannelGraph,
    criterion: str | Criterion = "l1",
    *,
    data: Any = None,
    seed: int = 0,
) -> Mapping[str, np.ndarray]:
    """Scores every channel of every group; higher = keep.

    The model is not changed.

    Args:
        model: the model that `graph` was built from.
        graph: its channel graph.
        criterion: a name in `keras_pcp.criteria.BY_NAME`, or a callable (see `keras_pcp.criteria`).
        data: labelled samples for criteria that read gradients or features: (x, y), (x, y, sample_weight), or a dataset
            of such batches. At most 256 samples are used.
        seed: for the draw of samples and for random criteria.

    Returns:
        {group name: float array (num_channels,)}.

    Raises:
        InvalidArgumentError: the criterion is unknown, lacks data or a compiled model, or does not return one finite
            number for each channel; or the graph, the data or the seed does not fit. Errors that a criterion itself raises
            pass through.
        NotFiniteError: the scores are not finite because weights of the model are NaN or infinite.

    Example:
        >>> import keras, numpy as np, keras_pcp
        >>> x = keras.Input((4,))
        >>> hidden = keras.layers.Dense(3, activation="relu", name="hidden")(x)
        >>> model = keras.Model(x, keras.layers.Dense(1)(hidden))
        >>> model.compile("sgd", "mse")
        >>> data = np.random.rand(16, 4), np.random.rand(16, 1)
        >>> scores = keras_pcp.score_channels(model, keras_pcp.build_graph(model), "taylor", data=data)
        >>> scores["hidden"].shape
        (3,)
    """
    function = get(criterion)
    check_fits(model, graph)
    seed = checks.count("seed", seed, 0)
    if data is not None:
        check_source(data)
    label = criterion if isinstance(criterion, str) else getattr(function, "__name__", type(function).__name__)
    if data is None and getattr(function, "needs_data", False):
        raise InvalidArgumentError(
            f"criterion {label!r} needs data=(x, y): labelled samples on which gradients or features are computed. "
            "Or use a criterion that needs only weights, such as 'l1'"
        )
    statistics = Statistics(model, graph, data, seed)
    scores = {}
    for group in graph:
        score = function(group, statistics)
        try:
            scores[group.name] = check_scores(group, score, f"the scores of criterion {label!r}")
        except InvalidArgumentError:
            check_finite(model)  # if this raises, the criterion is not to blame
            raise
    return scores

"""Network slimming: the scale of batch normalization."""

import numpy as np

from keras_pcp.criteria.filters import rows
from keras_pcp.errors import InvalidArgumentError
from keras_pcp.graph.channels import FOLLOW, ChannelGroup
from keras_pcp.statistics import Statistics


def bn_scale(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels that normalization scales up: s_c = |gamma_c|, summed over all normalizations of channel c.

    Takes milliseconds; needs only the weights.

    Differs from the paper: there, the network is trained with a penalty on |gamma| that drives some scales to 0, and
    thresholds are global. Here, you decide how to train; for the penalty, pass `keras.regularizers.L1` as
    `gamma_regularizer`.

    Raises:
        InvalidArgumentError: the group has no normalization with a scale.

    References:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv 1708.06519.
    """
    scales = group.slices_of(FOLLOW, "scale")
    if not scales:
        raise InvalidArgumentError(
            f"criterion 'bn_scale' needs a normalization layer with a scale on group {group.name!r}, which has none; "
            "use 'l1', or freeze the layer"
        )
    return np.abs(rows(group, scales, statistics.weights)).sum(axis=1)

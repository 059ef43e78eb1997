"""Maximum mean discrepancy (MMD) between two domains, as a head without weights.

References:
    Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012.
    Long et al., Learning Transferable Features with Deep Adaptation Networks, ICML 2015, arXiv 1502.02791 (DAN).

Differs from DAN: one head on one layer, and fixed equal weights of the kernels.
"""

from typing import Any

import keras
from keras import ops

from keras_pcp.graph.rules import CallSite, register_rule
from keras_pcp.support import checks


@keras.saving.register_keras_serializable("keras_pcp")
class MeanDiscrepancy(keras.layers.Layer):
    """Measures for each sample how much closer it is to the source domain than to the target domain.

    The first half of a batch is source, the second half target. The output for a sample x is the witness function

        f(x) = mean over source s of k(x, s) - mean over target t of k(x, t),

    where k is the mean of Gaussian kernels whose squared bandwidths are `scales` times the mean squared distance in the
    batch. The mean of f over the source minus its mean over the target is the squared MMD: `discrepancy_loss`.

    Args:
        scales: positive numbers.

    Input shape: (batch, features), with an even batch in training. Output shape: (batch, 1).
    """

    def __init__(self, scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0), **kwargs: Any):
        super().__init__(**kwargs)
        if not isinstance(scales, tuple | list) or not scales:
            raise checks.refusal("scales", "a tuple of positive numbers", scales)
        self.scales = tuple(checks.number("each of scales", s, "(0, inf)") for s in scales)

    def call(self, x):
        """Returns the witness function."""
        x = ops.cast(ops.reshape(x, (ops.shape(x)[0], -1)), "float32")
        squares = ops.sum(ops.square(x), axis=1, keepdims=True)
        distances = ops.maximum(squares + ops.transpose(squares) - 2 * ops.matmul(x, ops.transpose(x)), 0.0)
        width = ops.stop_gradient(ops.mean(distances)) + keras.config.epsilon()
        kernel = sum(ops.exp(-distances / (scale * width)) for scale in self.scales) / len(self.scales)
        count = ops.shape(x)[0]
        sign = ops.where(ops.arange(count) < count // 2, 1.0, -1.0)
        return ops.sum(kernel * sign, axis=1, keepdims=True) / ops.cast(ops.maximum(count // 2, 1), "float32")

    def compute_output_shape(self, input_shape):
        """Returns (batch, 1)."""
        return (input_shape[0], 1)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "scales": self.scales}


@register_rule(MeanDiscrepancy)
def _mixes_channels(site: CallSite) -> None:
    """Reads all channels without weights. So masked channels still count, but removed ones do not."""
    if site.inputs[0] is not None:
        site.mark_inexact(site.inputs[0])


@keras.saving.register_keras_serializable("keras_pcp")
def discrepancy_loss(domain: Any, witness: Any) -> Any:
    """The squared MMD, as a mean over the samples of a batch.

    Args:
        domain: (batch, 1): 0 for source, 1 for target; half of each.
        witness: (batch, 1): the output of `MeanDiscrepancy`.

    Returns:
        (batch,): the contribution of each sample.

    Example:
        >>> import numpy as np, keras_pcp
        >>> x = np.array([[0.0], [0.1], [5.0], [5.1]], "float32")
        >>> domain = np.array([[0.0], [0.0], [1.0], [1.0]])
        >>> head = keras_pcp.adaptation.MeanDiscrepancy()
        >>> apart = keras_pcp.adaptation.discrepancy_loss(domain, head(x))
        >>> alike = keras_pcp.adaptation.discrepancy_loss(domain, head(x[[0, 2, 0, 2]]))
        >>> bool(apart.numpy().mean() > 1), abs(float(alike.numpy().mean())) < 1e-5
        (True, True)
    """
    domain = ops.cast(domain, witness.dtype)
    return ops.sum(2 * (1 - 2 * domain) * witness, axis=-1)

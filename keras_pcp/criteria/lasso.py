"""Channel pruning by LASSO regression: channels from which the next layers' outputs can be reconstructed."""

import numpy as np

from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data

_DEPENDENT = 1e-10  # below this share of energy that others do not explain, a channel is a combination of them


@needs_data
def lasso(group: ChannelGroup, statistics: Statistics) -> np.ndarray:
    """Keeps channels that stay in a LASSO regression: s_c = the largest lambda at which beta_c is not 0.

    beta(lambda) minimises ||Y - sum over c of beta_c X_c||^2 / (2 ||Y||^2) + lambda ||beta||_1, where X_c is what channel
    c adds to the outputs of the layers that read it (`Statistics.contributions`) and Y is the sum of all X_c. As lambda
    falls, channels enter one after the other, so the n best scores are the first n channels that LASSO takes. If channels
    are copies of each other, one enters and the others get 0. Takes one forward pass, and at least C steps on a C x C
    matrix for C channels: a second for 1000 channels or fewer, minutes for 4000. Needs data.

    Differs from the paper: lambda is followed from breakpoint to breakpoint (homotopy). The paper doubles and halves it
    until the wanted number of channels is left. So sets of different sizes are nested, and a channel that leaves the
    regression again keeps its rank. Y does not include the bias. If several layers read a group, all of them score it
    together. Weights are refit separately, by `keras_pcp.refit`.

    References:
        He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, arXiv 1707.06168.
        Osborne, Presnell and Turlach, A new approach to variable selection in least squares problems, 2000: the path.
    """
    products = statistics.contributions[group.name]
    energy = products.sum()
    score = np.zeros(group.num_channels)
    if energy > _DEPENDENT * np.trace(products):
        score = entry_points(products, products.sum(axis=1)) / energy
    return np.where(statistics.present[group.name], score, -1.0)


def entry_points(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the largest lambda at which each beta_c is not 0; 0 for a beta_c that is always 0.

    beta(lambda) minimises beta^T G beta / 2 - t^T beta + lambda ||beta||_1.

    Args:
        gram: G, (C, C): inner products of the regressors.
        target: t, (C,): their inner products with the vector to explain.

    Example:
        >>> entry_points(np.eye(3), np.array([2.0, -3.0, 0.5])).tolist()
        [2.0, 3.0, 0.5]
    """
    swept, entry, signs = gram.astype(float), np.zeros(len(gram)), np.zeros(len(gram))
    dependent, buffer = np.zeros(len(gram), bool), np.empty_like(swept)
    left, now = None, np.inf
    for _ in range(20 * len(gram)):
        join, leave = _events(swept, target, signs, now)
        join[:, dependent] = 0
        if left is not None:
            join[left] = 0  # it has just left, at this lambda
        side, c = map(int, np.unravel_index(np.argmax(join), join.shape))
        gone = int(np.argmax(leave))
        now = max(join[side, c], leave[gone])
        if now <= 1e-12 * np.abs(target).max():
            break
        if leave[gone] > join[side, c]:
            _sweep(swept, gone, buffer)
            left, signs[gone], dependent[:] = (int(signs[gone] < 0), gone), 0, False
        elif swept[c, c] <= _DEPENDENT * gram[c, c]:
            dependent[c] = True
        else:
            _sweep(swept, c, buffer)
            left, signs[c], entry[c] = None, 1 - 2 * side, max(entry[c], now)
    return entry


def _events(swept: np.ndarray, target: np.ndarray, signs: np.ndarray, now: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lambdas below `now` at which regressors enter, with sign + or - (2, C), and leave (C,); or 0.

    Among the active regressors, beta = G^-1 (t - lambda s) is linear in lambda. So is the correlation of the others with the
    residual; they enter when it reaches lambda.
    """
    active = signs != 0
    fit, slope = swept @ (target * active), swept @ signs
    rest = target + fit
    with np.errstate(divide="ignore", invalid="ignore"):
        join = np.stack([rest / (1 + slope), -rest / (1 - slope)])
        leave = np.where(active & (slope * signs < 0), fit / slope, 0)
    valid = ~active & (np.stack([1 + slope, 1 - slope]) > 0)
    return np.minimum(np.where(valid, np.maximum(join, 0), 0), now), np.clip(leave, 0, now)


def _sweep(matrix: np.ndarray, k: int, buffer: np.ndarray) -> None:
    """Adds a regressor to the inverse of the active part of a Gram matrix, or removes it, in place."""
    pivot, row, column = matrix[k, k], matrix[k].copy(), matrix[:, k].copy()
    np.multiply.outer(column, row / pivot, out=buffer)
    matrix -= buffer
    matrix[k], matrix[:, k] = row / pivot, -column / pivot
    matrix[k, k] = 1 / pivot

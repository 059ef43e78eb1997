"""CHIP: channel independence."""

from dataclasses import dataclass

import numpy as np

from keras_pcp.graph.channels import ChannelGroup
from keras_pcp.statistics import Statistics, needs_data
from keras_pcp.support import checks


@needs_data
@dataclass(frozen=True)
class Chip:
    """Keeps channels whose feature maps are not a combination of the others: the mean fall of the nuclear norm.

    s_c = mean over the samples of ||A||_* - ||A without row c||_*, where row c of A (num_channels, positions) is the
    feature map of channel c. Takes one forward pass, and the eigenvalues of a square matrix of side min(num_channels,
    positions) for each channel and sample: seconds for 64 channels, minutes for 512. Needs data.

    Differs from the paper: nuclear norms come from eigenvalues of A A^T or A^T A, and fewer samples are used.

    Attributes:
        samples: maximum number of samples.

    References:
        Sui et al., CHIP: CHannel Independence-based Pruning for Compact Neural Networks, NeurIPS 2021,
        arXiv 2110.13981.
    """

    samples: int = 8

    def __post_init__(self):
        checks.count("samples", self.samples)

    def __call__(self, group: ChannelGroup, statistics: Statistics) -> np.ndarray:
        maps = np.moveaxis(statistics.features[group.name], -1, 1)[: self.samples].astype(float)
        present = statistics.present[group.name]
        maps = maps.reshape(*maps.shape[:2], -1) * present[:, None]
        return np.mean([_falls(rows) for rows in maps], axis=0)


def _falls(rows: np.ndarray) -> np.ndarray:
    """Returns how much the nuclear norm of a matrix falls when each row is set to zero."""
    whole = _nuclear_norm(_smaller_square(rows))
    falls = np.zeros(len(rows))
    for c in np.flatnonzero(rows.any(axis=1)):
        falls[c] = whole - _nuclear_norm(_smaller_square(np.delete(rows, c, axis=0)))
    return falls


def _smaller_square(rows: np.ndarray) -> np.ndarray:
    return rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows


def _nuclear_norm(square: np.ndarray) -> float:
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0)).sum())

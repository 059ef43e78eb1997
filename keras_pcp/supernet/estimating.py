"""Estimates the errors of options of a stage that have not been scored, from those that have, and how sure it is of them.

The logarithm of the error is taken for a Gaussian process (Rasmussen & Williams, Gaussian Processes for Machine Learning,
2006, chapter 2). Two options are alike as far as they are equally narrow, have their groups on the same side of the same
steps between two widths, and are near each other. The weights of these three were chosen on one super-net of a ResNet-20, of
whose stages all 10,000 options were scored.
"""

from dataclasses import dataclass

import numpy as np

COMMON = 4.0  # weight of what all options have in common
LINEAR = 1.0  # weight of the product of what two options lack, as shares of the range of widths
STEPS = 0.1  # weight of each step that both have above them
NEAR = 1.0  # weight of nearness
REACH = 0.6  # how far apart options are alike, as a share of the range of widths
NOISE = 0.01  # weight of what no other option tells
FLOOR = 0.1  # is added to errors before the logarithm, as a share of their median


class Estimates:
    """The estimates of a stage. They are kept up to date as options are entered and scored.

    Args:
        widths: the width that each level gives to each group of the stage, ints (groups, levels), rising.

    Example:
        >>> estimates = Estimates(np.array([[2, 5, 8], [4, 8, 12]]))
        >>> estimates.enter(np.array([[0, 0], [1, 1], [2, 2], [0, 1], [2, 1]]))
        >>> for place, error in ((0, 4.0), (1, 1.0), (2, 0.0)):
        ...     estimates.score(place, error)
        >>> low, high = estimates.errors()[3:]
        >>> bool(0 < high < 1 < low < 4), bool((estimates.errors(optimism=1.0)[3:] < (low, high)).all())
        (True, True)
    """

    def __init__(self, widths: np.ndarray):
        self.widths = widths
        self.known: dict[int, float] = {}
        self._options = _Features.of(np.empty((0, len(widths)), int), widths)
        self._places: list[int] = []  # of the known ones that the next two are of
        self._inverse = np.empty((0, 0))  # of the Cholesky factor of their covariances
        self._whitened = np.empty((0, 0))  # its product with the covariances of the known ones with all options
        self._variances = np.empty(0)

    def enter(self, levels: np.ndarray) -> None:
        """Adds options, (options, groups)."""
        features = _Features.of(levels, self.widths)
        new = self._inverse @ self._options[self._places].covariances(features)
        self._options = self._options.joined(features)
        self._whitened = np.column_stack([self._whitened, new])
        self._variances = np.concatenate([self._variances, features.variances() - (new**2).sum(0)])

    def score(self, place: int, error: float) -> None:
        """Takes the error of an option. An infinite one counts as one that is larger than all others."""
        self.known[place] = error

    def errors(self, optimism: float = 0.0) -> np.ndarray:
        """Returns estimates for all options, (options,), less this number of standard deviations."""
        errors = np.array(list(self.known.values()))
        finite = np.isfinite(errors)
        if not finite.any():
            return np.zeros(len(self._variances))
        for place in list(self.known)[len(self._places) :]:
            self._learn(place)
        least = min(errors[finite].min(), 0.0)  # some losses are negative
        above = errors - least
        above[~finite] = 2 * above[finite].max() or 1.0
        floor = FLOOR * (np.median(above[above > 0]) if (above > 0).any() else 1.0)
        target = np.log(above + floor)
        mean, spread = target.mean(), target.std() or 1.0
        found = (self._inverse @ ((target - mean) / spread)) @ self._whitened
        found -= optimism * np.sqrt(np.maximum(self._variances, 0))
        return np.exp(mean + spread * found) - floor + least

    def _learn(self, place: int) -> None:
        """Extends the factor by an option."""
        row, size = self._whitened[:, place], len(self._places)
        last = np.sqrt(max(self._variances[place], 0) + NOISE)
        below = np.concatenate([-(row @ self._inverse), [1.0]]) / last
        self._inverse = np.block([[self._inverse, np.zeros((size, 1))], [below[None]]])
        new = (self._options[[place]].covariances(self._options)[0] - row @ self._whitened) / last
        self._whitened = np.concatenate([self._whitened, new[None]])
        self._variances = self._variances - new**2
        self._places.append(place)


@dataclass(frozen=True, eq=False)
class _Features:
    """What options are compared by.

    Attributes:
        lacks: how narrow groups are, from 0 for the largest to 1 for the least width, (options, groups).
        steps: 1 for each width that is larger than that of the group, 0 for the others, (options, groups x levels).
    """

    lacks: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, levels: np.ndarray, widths: np.ndarray) -> "_Features":
        least, most = widths[:, :1], widths[:, -1:]
        lacks = (most - widths) / np.maximum(most - least, 1)
        smaller = (widths[:, :, None] < widths[:, None, :]).astype("float32")  # (groups, levels, levels)
        groups = np.arange(len(widths))
        return cls(lacks[groups, levels], smaller[groups, levels].reshape(len(levels), widths.size))

    def __getitem__(self, places: list[int]) -> "_Features":
        return _Features(self.lacks[places], self.steps[places])

    def joined(self, other: "_Features") -> "_Features":
        return _Features(np.concatenate([self.lacks, other.lacks]), np.concatenate([self.steps, other.steps]))

    def covariances(self, other: "_Features") -> np.ndarray:
        """Returns how alike each of these is with each of the others, (these, others)."""
        product, squares = self.lacks @ other.lacks.T, (other.lacks**2).sum(1)
        apart = np.sqrt(np.maximum((self.lacks**2).sum(1)[:, None] + squares - 2 * product, 0) * 5) / REACH
        near = (1 + apart + apart**2 / 3) * np.exp(-apart)  # Matern 5/2
        return COMMON + LINEAR * product + STEPS * self.steps @ other.steps.T + NEAR * near

    def variances(self) -> np.ndarray:
        """Returns how alike each of these is with itself, (these,)."""
        return COMMON + LINEAR * (self.lacks**2).sum(1) + STEPS * self.steps.sum(1) + NEAR

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
        num_levels: number of levels, at least 2.
        groups: number of groups of the stage.

    Example:
        >>> estimates = Estimates(3, 2)
        >>> estimates.enter(np.array([[0, 0], [1, 1], [2, 2], [0, 1], [2, 1]]))
        >>> for place, error in ((0, 4.0), (1, 1.0), (2, 0.0)):
        ...     estimates.score(place, error)
        >>> low, high = estimates.errors()[3:]
        >>> bool(0 < high < 1 < low < 4), bool((estimates.errors(optimism=1.0)[3:] < (low, high)).all())
        (True, True)
    """

    def __init__(self, num_levels: int, groups: int):
        self.num_levels = num_levels
        self.known: dict[int, float] = {}
        self._options = _Features.of(np.empty((0, groups), int), num_levels)
        self._places: list[int] = []  # of the known ones that are in the factor
        self._factor = np.empty((0, 0))  # of Cholesky, of their covariances
        self._whitened = np.empty((0, 0))  # covariances of the known ones with all options, divided by the factor
        self._variances = np.empty(0)

    def enter(self, levels: np.ndarray) -> None:
        """Adds options, (options, groups)."""
        features = _Features.of(levels, self.num_levels)
        new = np.linalg.solve(self._factor, self._options[self._places].covariances(features))
        self._options = self._options.joined(features)
        self._whitened = np.column_stack([self._whitened, new])
        self._variances = np.concatenate([self._variances, features.variances() - (new**2).sum(0)])

    def score(self, place: int, error: float) -> None:
        """Takes the error of an option, at least 0. Infinite ones tell nothing of others."""
        if np.isfinite(error):
            self.known[place] = error

    def errors(self, optimism: float = 0.0) -> np.ndarray:
        """Returns estimates for all options, (options,), less this number of standard deviations."""
        if not self.known:
            return np.zeros(len(self._variances))
        for place in list(self.known)[len(self._places) :]:
            self._learn(place)
        errors = np.array(list(self.known.values()))
        floor = FLOOR * np.median(errors) + 1e-6
        target = np.log(errors + floor)
        mean, spread = target.mean(), target.std() + 1e-6
        found = np.linalg.solve(self._factor, (target - mean) / spread) @ self._whitened
        found -= optimism * np.sqrt(np.maximum(self._variances, 0))
        return np.maximum(np.exp(mean + spread * found) - floor, 0)

    def _learn(self, place: int) -> None:
        """Extends the factor by an option."""
        row, size = self._whitened[:, place], len(self._places)
        last = np.sqrt(max(self._variances[place], 0) + NOISE)
        self._factor = np.block([[self._factor, np.zeros((size, 1))], [row[None], np.array([[last]])]])
        new = (self._options[[place]].covariances(self._options)[0] - row @ self._whitened) / last
        self._whitened = np.concatenate([self._whitened, new[None]])
        self._variances = self._variances - new**2
        self._places.append(place)


@dataclass(frozen=True, eq=False)
class _Features:
    """What options are compared by.

    Attributes:
        lacks: how narrow groups are, from 0 to 1, (options, groups).
        steps: 1 for each step that lies above the level of a group, 0 for the others, (options, groups x steps).
    """

    lacks: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, levels: np.ndarray, num_levels: int) -> "_Features":
        above = levels[:, :, None] < np.arange(1, num_levels)
        steps = above.reshape(len(levels), levels.shape[1] * (num_levels - 1)).astype(float)
        return cls(1 - levels / (num_levels - 1), steps)

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

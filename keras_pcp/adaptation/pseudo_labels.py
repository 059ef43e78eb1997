"""Labels that the classifier in training gives to unlabelled samples of the target domain.

References:
    Lee, Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks, ICML workshop
    2013. Pruning with pseudo-labels: arXiv 2507.04792; how that paper chooses and renews them is not public.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_pcp.errors import InvalidArgumentError
from keras_pcp.support import checks

_MOST_BALANCE = 10


@dataclass
class PseudoLabels:
    """Chooses which labels of the classifier for target samples are sure enough to be used.

    Attributes:
        threshold: least probability of the most probable class, in [0, 1), at which a label is used. The value 0.9 is our
            choice.
        refresh_every: number of epochs after which training gets new labels, at least 1. Pruning gets new labels at every
            moment.
        balanced: whether labels are weighted so that every class that occurs counts the same. One label counts at most ten
            times as much as a label of the most frequent class, so that a single wrong label cannot dominate.
        true_labels: int array (samples,) of the true classes of the target samples. They are only for the record; nothing
            is chosen by them.
        history: one entry for each time that labels were made for training: `passed`, the share of the samples that are
            used, and, with `true_labels`, `right`, the share of these that are right.

    Raises:
        InvalidArgumentError: an option is out of range.

    Example:
        >>> import numpy as np, keras_pcp
        >>> labels, weights = keras_pcp.PseudoLabels(0.9).assign(np.array([[0.05, 0.95], [0.4, 0.6]]))
        >>> labels.tolist(), weights.tolist()
        ([1, 1], [1.0, 0.0])
    """

    threshold: float = 0.9
    refresh_every: int = 1
    balanced: bool = False
    true_labels: Any = None
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self):
        self.threshold = checks.number("threshold", self.threshold, "[0, 1)")
        self.refresh_every = checks.count("refresh_every", self.refresh_every)
        self.balanced = checks.flag("balanced", self.balanced)
        checks.instance("history", self.history, list, "a list")
        if self.true_labels is not None:
            try:
                numeric = np.asarray(self.true_labels).dtype.kind in "biuf"
            except Exception:  # ragged, or of a class that is not an array
                numeric = False
            if not numeric or np.ndim(self.true_labels) == 0:
                raise checks.refusal("true_labels", "an int array (samples,)", self.true_labels)

    def assign(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels and weights for outputs of a classifier.

        Args:
            outputs: float array (samples, classes): probabilities if every row is a distribution, logits otherwise.

        Returns:
            int array (samples,) of the most probable classes, and float array (samples,) of weights: 0 for labels that are
            not sure enough; the mean of the others is 1.
        """
        probable = _probabilities(outputs)
        labels = probable.argmax(axis=1)
        weights = (probable.max(axis=1) >= self.threshold).astype("float32")
        if self.balanced and weights.any():
            counts = np.bincount(labels, weights, probable.shape[1])
            weights /= np.maximum(counts, counts.max() / _MOST_BALANCE)[labels]
            weights *= counts.sum() / weights.sum()
        return labels, weights.astype("float32")

    def check(self, count: int) -> None:
        """Raises InvalidArgumentError if there are `true_labels`, but not `count` of them."""
        if self.true_labels is not None and np.size(self.true_labels) != count:
            raise InvalidArgumentError(f"true_labels has {np.size(self.true_labels)} labels for {count} target samples")

    def judged(self, labels: np.ndarray, weights: np.ndarray, place: Any = slice(None)) -> dict[str, float]:
        """Returns an entry for `history`; `place` gives the positions of the samples in `true_labels`."""
        used = weights > 0
        entry = {"passed": float(used.mean())}
        if self.true_labels is not None and used.any():
            right = np.asarray(self.true_labels).ravel()[place][used] == labels[used]
            entry["right"] = float(right.mean())
        return entry


def _probabilities(outputs: np.ndarray) -> np.ndarray:
    outputs = np.asarray(outputs, "float64")
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise InvalidArgumentError(
            f"pseudo-labels need outputs of shape (samples, classes) with at least two classes, got {outputs.shape}"
        )
    if outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, atol=1e-2):
        return outputs
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)

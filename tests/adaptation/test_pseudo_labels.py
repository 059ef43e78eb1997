"""Labels of the target that the network gives itself."""

import numpy as np
import pytest
from domains import dann, domains

import keras_pcp


def test_pseudo_labels():
    logits = np.log([[0.95, 0.03, 0.02], [0.01, 0.97, 0.02], [0.92, 0.04, 0.04], [0.5, 0.3, 0.2]])
    labels, weights = keras_pcp.PseudoLabels(0.9).assign(logits)
    assert (labels.tolist(), weights.tolist()) == ([0, 1, 0, 0], [1, 1, 1, 0])
    assert keras_pcp.PseudoLabels(0.9).assign(np.exp(logits))[1].tolist() == [1, 1, 1, 0]
    _, balanced = keras_pcp.PseudoLabels(0.9, balanced=True).assign(logits)
    assert balanced == pytest.approx([0.75, 1.5, 0.75, 0])
    rare = np.repeat([[5.0, 0.0], [0.0, 5.0]], [99, 1], axis=0)
    _, capped = keras_pcp.PseudoLabels(0.9, balanced=True).assign(rare)
    assert capped[-1] == pytest.approx(10 * capped[0])
    assert capped.mean() == pytest.approx(1)
    told = keras_pcp.PseudoLabels(0.9, true_labels=[0, 1, 2, 0])
    assert told.judged(labels, weights) == {"passed": 0.75, "right": pytest.approx(2 / 3)}
    assert told.judged(labels[2:], weights[2:], [2, 3]) == {"passed": 0.5, "right": 0.0}
    nothing = keras_pcp.PseudoLabels(0.9, balanced=True, true_labels=[0]).assign(np.zeros((1, 3)))
    assert nothing[1].tolist() == [0]


def test_pseudo_labels_are_renewed_while_training():
    network = dann()
    (x, y), target = domains()
    labels = keras_pcp.PseudoLabels(0.5, refresh_every=2, true_labels=y)
    network.fit((x, y), target, batch_size=32, epochs=5, verbose=0, pseudo_labels=labels)
    assert len(labels.history) == 3
    assert all(("right" in entry) == (entry["passed"] > 0) for entry in labels.history)


def test_new_pseudo_labels_are_trained_on():
    """Labels that change after the first epoch move the weights otherwise than labels that stay."""
    (x, y), target = domains()

    class Fixed(keras_pcp.PseudoLabels):
        def assign(self, outputs):
            return (np.arange(96) + self.turn * len(self.history)) % 3, np.ones(96, "float32")

    found = []
    for turn in (0, 0, 1):
        network, labels = dann(), Fixed()
        labels.turn = turn
        network.fit((x, y), target, batch_size=32, epochs=2, verbose=0, pseudo_labels=labels)
        found.append(network.classifier.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(found[0], found[2], strict=True))

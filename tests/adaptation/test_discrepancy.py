"""The discrepancy between domains as a loss."""

import keras
import numpy as np
import pytest
from domains import dann, domains

import keras_pcp


def test_the_discrepancy_is_that_of_its_formula():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (6, 4)), rng.normal(1, 2, (6, 4))])
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    kernel = np.mean([np.exp(-distances / (s * distances.mean())) for s in (0.25, 0.5, 1, 2, 4)], axis=0)
    expected = kernel[:6, :6].mean() + kernel[6:, 6:].mean() - 2 * kernel[:6, 6:].mean()
    domain = np.repeat([[0.0], [1.0]], 6, axis=0)
    found = keras_pcp.adaptation.discrepancy_loss(domain, keras_pcp.adaptation.MeanDiscrepancy()(x.astype("float32")))
    assert float(np.mean(found)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_training_with_the_discrepancy_prunes_too(tmp_path):
    network = dann(domain_head=keras_pcp.adaptation.MeanDiscrepancy())
    (x, y), target = domains()
    pruning = keras_pcp.ProgressivePruning(
        max_macs=0.5, deliver=network.classifier, validation_data=network.validation_data((x, y), target)
    )
    history = network.fit((x, y), target, batch_size=32, epochs=4, verbose=0, callbacks=[pruning])
    assert pruning.report.reached
    network.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.allclose(loaded.predict(x, verbose=0)["label"], network.classifier.predict(x, verbose=0))
    alone = dann(domain_head=keras_pcp.adaptation.MeanDiscrepancy())
    alone.compile(keras.optimizers.SGD(0.05, momentum=0.9), domain_weight=0.0)
    without = alone.fit((x, y), target, batch_size=32, epochs=4, verbose=0)
    assert history.history["domain_loss"][-1] < without.history["domain_loss"][-1]

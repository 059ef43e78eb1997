"""Soft filter pruning against the pseudo-code of its paper."""

import keras
import numpy as np
from tiny_fits import network, samples

import keras_pcp
from keras_pcp.strategies import SoftFilterPruning


class Look(keras.callbacks.Callback):
    """Keeps the kernels that every epoch begins and ends with."""

    def __init__(self):
        super().__init__()
        self.begins, self.ends = [], []

    def kernels(self):
        return [self.model.get_layer(name).kernel.numpy() for name in ("first", "second")]

    def on_epoch_begin(self, epoch, logs=None):
        self.begins.append(self.kernels())

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.kernels())


def test_after_each_epoch_the_filters_of_lowest_norm_are_zero_and_training_revives_them():
    model, look = network(), Look()
    x, y = samples()
    pruning = keras_pcp.Pruning(SoftFilterPruning(), max_macs=0.5, criterion="l2", begin=0.0, end=0.8)
    model.fit(x, y, batch_size=8, epochs=6, verbose=0, callbacks=[pruning, look])
    assert [r.how for r in pruning.report.rounds] == ["zero"] * 3 + ["cut"]
    assert [r.step for r in pruning.report.rounds] == [8, 16, 24, 32]
    zeros = set()
    for epoch in range(3):
        for k, kernel in enumerate(look.ends[epoch]):
            norms = np.array([np.sqrt(sum(w * w for w in f.ravel())) for f in np.moveaxis(kernel, -1, 0)])
            zero = np.flatnonzero(norms == 0)
            rate = len(zero) / len(norms)
            assert 0 < rate < 1
            assert len(zero) == int(len(norms) * rate)
            zeros.add(len(zero))
            if epoch:
                revived = look.begins[epoch][k][..., zero]
                before = look.ends[epoch - 1][k]
                gone_before = np.flatnonzero(~before.any(axis=(0, 1, 2)))
                assert (
                    kernel[..., np.setdiff1d(gone_before, zero)].any(axis=(0, 1, 2)).all()
                )  # larger than others again
                assert not revived[..., :0].any()
    assert len(zeros) == 1  # one rate for all groups, in all epochs
    assert [w.shape[-1] for w in look.kernels()] == [8 - zeros.pop()] * 2
    assert pruning.report.reached


def test_what_is_zeroed_is_what_a_loop_over_the_norms_says():
    model = network()
    before = [model.get_layer(n).kernel.numpy() for n in ("first", "second")]
    pruning = keras_pcp.Pruning(SoftFilterPruning(), max_macs=0.5, criterion="l2", begin=0.0, end=0.9)
    model.optimizer.learning_rate = 0.0  # nothing but zeroing changes the filters
    x, y = samples()
    look = Look()
    model.fit(x, y, batch_size=32, epochs=4, verbose=0, callbacks=[pruning, look])
    for old, new in zip(before, look.ends[0], strict=True):
        norms = [sum(float(w) ** 2 for w in f.ravel()) ** 0.5 for f in np.moveaxis(old, -1, 0)]
        gone = sum(not f.any() for f in np.moveaxis(new, -1, 0))
        lowest = set(sorted(range(len(norms)), key=norms.__getitem__)[:gone])
        assert {c for c in range(len(norms)) if not new[..., c].any()} == lowest
        kept = sorted(set(range(len(norms))) - lowest)
        assert np.array_equal(new[..., kept], old[..., kept])

"""Interrupts public functions on every line, and `fit` at random times; the model must stay whole.

    python tests/interrupts.py --every-line [--only shrink] [--stride 1] [--offset 1]
    python tests/interrupts.py --signals 200

Lines of keras_pcp count, those of contextlib that it runs, and those of Keras that run while a model is written to; with
`--all-of-keras`, all of Keras. Within TensorFlow no line is interrupted: its own global state would not survive that.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np

import keras_pcp
from keras_pcp.fit.live_model import LiveModel
from keras_pcp.fit.session import Session
from keras_pcp.support import changes, internals

L = keras.layers
OURS = str(Path(keras_pcp.__file__).parent) + os.sep
KERAS = str(Path(keras.__file__).parent) + os.sep
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 6, 6, 2)).astype("float32"), RNG.normal(size=(8, 3)).astype("float32")


class Subject:
    """A small model with all that a shrink has to bring in step: a second optimizer and a sub-model among it."""

    def __init__(self, seed=0):
        keras.utils.set_random_seed(seed)
        i = keras.Input((6, 6, 2), name="in")
        stem = L.Conv2D(4, 3, padding="same", name="stem")(i)
        x = L.ReLU(name="relu")(L.BatchNormalization(name="bn")(stem))
        x = L.Add(name="add")([x, L.Conv2D(4, 3, padding="same", name="branch")(x)])
        x = L.Reshape((9, 4, 4), name="reshape")(L.Conv2D(4, 1, name="mix")(x))
        x = L.Dense(5, name="hidden")(L.Flatten(name="flatten")(x))
        self.model = keras.Model(i, L.Dense(3, name="out")(x), name="subject")
        self.part = keras.Model(i, stem, name="part")
        self.model.compile(keras.optimizers.Adam(0.01, name="adam"), "mse", run_eagerly=True)
        self.other = keras.optimizers.SGD(0.01, momentum=0.9, name="other")
        self.model.train_on_batch(X, Y)
        self.other.build(self.model.get_layer("stem").trainable_variables)
        for slot in self.other.variables:
            slot.assign(np.full(slot.shape, 2, slot.dtype))
        self.model.make_predict_function()
        self.graph = keras_pcp.build_graph(self.model)
        self.selection = keras_pcp.Selection({g.name: np.arange(g.num_channels) % 3 > 0 for g in self.graph})

    def state(self):
        """Returns all that must be wholly old or wholly new."""
        model = self.model
        layers = internals.layers_of(model)
        specs = [s for layer in layers for s in keras.tree.flatten(layer.input_spec) if s is not None]
        nodes = [*internals.nodes(model), *internals.nodes(self.part)]
        optimizers = [model.optimizer, self.other]
        return {
            "weights": [(tuple(w.shape), tuple(w.value.shape), w.numpy().tobytes()) for w in model.weights],
            "tensors": [t.shape for n in nodes for t in (*n.input_tensors, *n.outputs)],
            "configs": json.dumps([model.get_config(), self.part.get_config()]),
            "specs": [(s.shape, dict(s.axes or {})) for s in specs],
            "built": [json.dumps(layer.get_build_config()) for layer in layers],
            "momenta": [layer.momentum for layer in layers if isinstance(layer, L.BatchNormalization)],
            "targets": [getattr(layer, "_resolved_target_shape", None) for layer in layers],
            "slots": [[(tuple(v.shape), v.numpy().tobytes()) for v in o.variables] for o in optimizers],
            "index": [
                [
                    (o._trainable_variables_indices.get(o._var_key(v)), len(o._trainable_variables_indices))
                    for v in o._trainable_variables
                ]
                for o in optimizers
            ],
            "traced": [m.predict_function is not None for m in (model, self.part)],
            "handler": signal.getsignal(signal.SIGINT),
        }

    def check_use(self):
        """Predicts, saves, loads, and trains one step with each optimizer, by which the state is lost."""
        expected = self.model(X, training=False)
        with tempfile.TemporaryDirectory() as folder:
            self.model.save(f"{folder}/model.keras")
            loaded = keras.models.load_model(f"{folder}/model.keras")
        assert np.array_equal(loaded(X, training=False), expected)
        assert np.array_equal(self.model.predict(X, verbose=0), self.model.predict_step((X,)))
        assert np.isfinite(self.model.train_on_batch(X, Y))
        stem = self.model.get_layer("stem").trainable_variables
        self.other.apply([keras.ops.ones_like(v) for v in stem], stem)


def shrink(s):
    keras_pcp.shrink(s.model, s.graph, s.selection)


def masked(s):
    with keras_pcp.masked(s.model, s.graph, s.selection):
        s.model(X[:1], training=False)


def reestimate_batch_norm(s):
    keras_pcp.reestimate_batch_norm(s.model, X, batch_size=4)


def corrected_cut(s):
    everything = keras_pcp.Selection({g.name: np.ones(g.num_channels, bool) for g in s.graph})
    LiveModel(s.model, s.graph, everything).cut(s.selection, False, lambda journal: None, [X])


def supernet_search(s):
    net = keras_pcp.StagewiseSupernet(s.model, 1, ratios=(0.5,))
    net.search(max_params=0.7, validation_data=X, samples=8, evaluations=3, verbose=False)


OPERATIONS = {f.__name__: f for f in (shrink, masked, reestimate_batch_norm, corrected_cut, supernet_search)}
LEAVE_ALONE = ("masked", "supernet_search")


def interrupted(run, number, error, all_of_keras=False):
    """Runs with an error on the line of this number; returns what was raised, the number of lines, and the place."""
    count, hit = 0, None

    def local(frame, event, argument):
        nonlocal count, hit
        if event == "line":
            count += 1
            if count == number:
                hit = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise error
        return local

    def tracer(frame, event, argument):
        places = (OURS, KERAS) if all_of_keras or changes._DEFERRING else (OURS,)
        path = frame.f_code.co_filename
        if path == contextlib.__file__ and frame.f_back is not None:
            path = frame.f_back.f_code.co_filename
        return local if path.startswith(places) else None

    before, raised = sys.gettrace(), None
    sys.settrace(tracer)
    try:
        run()
    except BaseException as e:  # holds its frames, so nothing is cleaned up because they are dropped
        raised = e
    finally:
        sys.settrace(before)
    return raised, count, hit


def every_line(name, stride=1, offset=1, use_every=1, all_of_keras=False):
    """Interrupts an operation on every line; returns the numbers of lines, of old and new models, and what is torn."""
    run, subject = OPERATIONS[name], Subject()
    old = subject.state()
    run(subject)
    new, subject = subject.state(), Subject()
    assert subject.state() == old, "the model is not the same each time"
    assert (new == old) == (name in LEAVE_ALONE)
    number, found, torn = offset, {"old": 0, "new": 0}, []
    while True:
        error = MemoryError("injected") if number % 7 == 3 else KeyboardInterrupt()
        raised, count, hit = interrupted(partial(run, subject), number, error, all_of_keras)
        if hit is None:
            return count, found, torn
        state = subject.state()
        differing = {key for key in old if state[key] != old[key]}
        found["new" if differing else "old"] += 1
        try:
            if differing:
                assert state == new, [key for key in new if state[key] != new[key]]
            used = differing or number // stride % use_every == 0
            if used:
                subject.check_use()
        except Exception as e:
            used = True
            torn.append((number, hit, f"{type(e).__name__}: {str(e)[:300]}"))
        del raised
        if used:
            # `shrink` looks through all living models, so those of earlier lines would add lines of their own.
            del subject
            keras.backend.clear_session(free_memory=True)
            subject = Subject()
        number += stride


# --- random signals ---


class Watch(keras.callbacks.Callback):
    """Keeps what the model was before the last moment of pruning, or after its last part that was carried out."""

    def __init__(self):
        super().__init__()
        self.in_moment, self.committed, self.first_moment = False, None, None
        self.at_first_moment = lambda: None

    def on_epoch_begin(self, epoch, logs=None):
        self.committed = whole_state(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self.committed = whole_state(self.model)


def whole_state(model):
    variables = [*model.weights, *model.optimizer.variables, *model.metrics_variables]
    return [(v.path, tuple(v.shape), v.numpy().tobytes()) for v in variables]


@contextlib.contextmanager
def watching(watch):
    """Lets `watch` know when a moment of pruning begins and ends, and what is committed in it."""
    take_due, record = Session.take_due, Session.record

    def watched(self):
        watch.in_moment = any(m.step <= self.steps.made for m in self.due)
        if watch.in_moment and watch.first_moment is None:
            watch.first_moment = time.perf_counter()
            watch.at_first_moment()
        take_due(self)
        watch.in_moment = False

    def recorded(self, journal):
        record(self, journal)
        watch.committed = whole_state(self.callback.model)

    Session.take_due, Session.record = watched, recorded
    try:
        yield
    finally:
        Session.take_due, Session.record = take_due, record


def progressive(data, **options):
    measuring = keras_pcp.Measuring(samples=16)
    return keras_pcp.ProgressivePruning(validation_data=data, refit_data=data, measuring=measuring, **options)


def adaptive(data, **options):
    return keras_pcp.AdaptivePruning(**options)


def a_fit(seed, eagerly, pruning):
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    i = keras.Input((8, 8, 1))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3, padding="same")(i)))
    x = L.Add()([x, L.Conv2D(6, 3, padding="same")(x)])
    model = keras.Model(i, L.Dense(3)(L.Flatten()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"], run_eagerly=eagerly)
    model.optimizer.build(model.trainable_variables)  # Keras would leave it half built in an interrupted first step
    x, y = rng.normal(size=(48, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 48)
    watch = Watch()
    callback = pruning((x, y), max_macs=0.6, begin=0.1, end=0.9, distillation=keras_pcp.Distillation(0.5))

    def run():
        with watching(watch):
            model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[watch, callback])

    return model, watch, run, (x, y)


def check_after(model, watch, data):
    x, y = data
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if watch.in_moment:
        now = whole_state(model)
        differing = [a[:2] for a, b in zip(now, watch.committed, strict=True) if a != b]
        assert not differing, f"differs from what was committed: {differing[:5]}"
    expected = np.asarray(model(x[:4], training=False))
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras")
    assert np.allclose(loaded(x[:4], training=False), expected, atol=1e-6)
    assert np.allclose(model.predict(x[:4], verbose=0), expected, atol=1e-5)
    before = model.get_weights()
    plain = model.compute_loss(x, y, model(x, training=True), training=True)
    assert np.isclose(plain, model.loss(y, model(x, training=True)), rtol=1e-4), "the loss is not the model's own"
    model.fit(x, y, batch_size=32, verbose=0)
    assert not {"compute_loss", "make_train_function"} & set(vars(model))
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True)), "it does not train"


def raise_interrupt(sent, number, frame):
    sent.append(number)
    raise KeyboardInterrupt


def send_interrupt(sent):
    sent.append(signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def signals(count, seed=0):
    """Interrupts fits at random times; returns the numbers of hits and of hits within a moment, and what is torn."""
    rng = np.random.default_rng(seed)
    sent = []
    signal.signal(signal.SIGALRM, partial(raise_interrupt, sent))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
    hits, within, torn, spans, attempt = 0, 0, [], {}, 0
    for kind in itertools.product((True, False), (progressive, adaptive)):
        for _ in range(2):  # the second one is as fast as those to come
            _, watch, run, _ = a_fit(0, *kind)
            run()
            spans[kind] = time.perf_counter() - watch.first_moment
    print("seconds from the first moment of pruning on:", *spans.values(), flush=True)
    while hits < count:
        attempt += 1
        kind = attempt % 4 > 0, (progressive, adaptive)[attempt % 3 == 0]
        model, watch, run, data = a_fit(attempt, *kind)
        delay = rng.uniform(0.001, 0.9) * spans[kind]
        sent.clear()
        timer = threading.Timer(delay, send_interrupt, [sent])
        alarm = partial(signal.setitimer, signal.ITIMER_REAL, delay)
        start = (alarm, timer.start)[attempt % 2]
        if attempt % 10:
            watch.at_first_moment = start
        else:
            start()  # some hit the beginning of the fit
        try:
            run()
            signal.setitimer(signal.ITIMER_REAL, 0)
            timer.cancel()
            continue
        except BaseException as e:  # TensorFlow turns some interrupts into RuntimeError, SystemError or AssertionError
            if not sent:
                raise
            error = e
        hits += 1
        within += watch.in_moment
        try:
            check_after(model, watch, data)
        except Exception as e:
            torn.append((attempt, kind[0], kind[1].__name__, delay, f"{type(e).__name__}: {str(e)[:400]}"))
            print("torn", torn[-1], flush=True)
        del error, model, watch, run
        if attempt % 10 == 0:
            keras.backend.clear_session(free_memory=False)
            gc.collect()
            print(f"{hits} hits, {within} within a moment of pruning, {len(torn)} torn", flush=True)
    return hits, within, torn


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every-line", action="store_true")
    parser.add_argument("--only", choices=OPERATIONS)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--offset", type=int, default=1)
    parser.add_argument("--use-every", type=int, default=1, help="uses the model after each n-th interrupt only")
    parser.add_argument("--all-of-keras", action="store_true")
    parser.add_argument("--signals", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    bad = []
    for name in [options.only] if options.only else OPERATIONS if options.every_line else []:
        count, found, torn = every_line(name, options.stride, options.offset, options.use_every, options.all_of_keras)
        row = {"suite": "interrupts", "of": f"lines of {name}", "count": sum(found.values()), "lines": count}
        print(json.dumps({**row, "old": found["old"], "new": found["new"], "torn": len(torn)}), flush=True)
        for entry in torn:
            print("  ", *entry)
        bad += torn
    if options.signals:
        hits, within, torn = signals(options.signals)
        row = {"suite": "interrupts", "of": "signals in fit", "count": hits, "in a moment of pruning": within}
        print(json.dumps({**row, "torn": len(torn)}))
        bad += torn
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

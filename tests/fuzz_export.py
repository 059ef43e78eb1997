"""Exports random models with random, often extreme, weights and samples: no crash, and no errors but documented ones.

    python tests/fuzz_export.py --count 500 --start 0

prints failing seeds with their errors, and a summary line of JSON at the end.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import numpy as np
from keras import layers as L
from random_graphs import random_model

import keras_pcp
from keras_pcp.errors import PruningError

EXTREMES = [np.inf, -np.inf, np.nan, 1e38, -1e38, 3e38, 1e30, 1e-40, 1e-45, 0.0, 1.0, 65504.0, 1e300]
ACTIVATIONS = ["relu", "sigmoid", "tanh", "softplus", "gelu", "softmax", "exponential", None]
FORMATS = ["int8", "int8", "int8", None, "float16", "dynamic"]
DOCUMENTED = (PruningError,)


def small_model(rng: np.random.Generator) -> keras.Model:
    """Builds a model of two to four layers on an image, a vector, tokens, or two inputs."""
    kind = rng.integers(0, 4)
    activation = rng.choice(np.array(ACTIVATIONS, object), 2)
    if kind == 0:
        i = keras.Input((6, 6, 2))
        x = L.Conv2D(4, 3, activation=activation[0], padding="same")(i)
        x = L.BatchNormalization()(x) if rng.random() < 0.3 else x
        x = L.DepthwiseConv2D(3, activation=activation[1])(x) if rng.random() < 0.5 else L.MaxPooling2D()(x)
        return keras.Model(i, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    if kind == 1:
        i = keras.Input((5,))
        return keras.Model(i, L.Dense(3)(L.Dense(4, activation=activation[1])(L.Dense(6, activation=activation[0])(i))))
    if kind == 2:
        i = keras.Input((7,), dtype="int32")
        return keras.Model(i, L.Dense(2, activation=activation[0])(L.GlobalMaxPooling1D()(L.Embedding(9, 4)(i))))
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = L.Concatenate()([L.Dense(3, activation=activation[0])(a), b])
    return keras.Model([b, a], [L.Dense(2)(x), L.Dense(1, activation=activation[1])(x)])


def spoil_weights(model: keras.Model, rng: np.random.Generator) -> None:
    """Makes some weights extreme, or a layer dead."""
    for weight in model.weights:
        if rng.random() < 0.3 and len(weight.shape):
            value = np.array(weight)
            if rng.random() < 0.4:
                value[...] = rng.choice([0.0, -100.0, 1e-40, 1e30])
            else:
                value.flat[rng.integers(0, value.size)] = rng.choice(EXTREMES)
            weight.assign(value)


def samples_for(model: keras.Model, rng: np.random.Generator):
    """Draws samples: ordinary ones, such with extreme values, and such that do not fit."""
    count, arrays = int(rng.integers(1, 20)), []
    for t in model.inputs:
        shape = (count, *t.shape[1:])
        array = rng.integers(0, 9, shape) if "int" in t.dtype else rng.normal(size=shape)
        kind = rng.integers(0, 9)
        if kind == 0:
            array = array.astype("float64")
            array.flat[rng.integers(0, array.size)] = rng.choice(EXTREMES)
        if kind == 1:
            array = np.full(shape, rng.choice(EXTREMES))
        if kind == 2:
            array = array * rng.choice([1e38, 1e-38, 0, 1e20])
        if kind == 3:
            array = rng.integers(-(2**62), 2**62, shape)
        if kind == 4:
            array = [
                array.astype(str),
                array.astype(object),
                array.astype(complex),
                array[:0],
                array[0],
                array[..., None],
                array > 0,
                [[1], [2, 3]],
                None,
            ][rng.integers(0, 9)]
        arrays.append(array)
    whole = arrays if len(arrays) > 1 else arrays[0]
    choices = [whole] * 8 + [arrays * 2, {"a": arrays[0], "b": arrays[-1]}, "samples", 3]
    return choices[rng.integers(0, len(choices))]


def check_seed(seed: int, folder: Path) -> str:
    """Exports once; returns what came of it, and raises AssertionError where it must not."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    model = random_model(seed) if rng.random() < 0.2 else small_model(rng)
    if rng.random() < 0.5:
        spoil_weights(model, rng)
    before, target = model.get_weights(), folder / "model.tflite"
    target.write_bytes(b"old")
    try:
        file = keras_pcp.export_litert(
            model,
            target,
            quantization=rng.choice(np.array(FORMATS, object)),
            representative_data=samples_for(model, rng),
        )
        assert target.stat().st_size == file.bytes
        assert keras_pcp.measure_latency(target, runs=1) > 0
        found = "written"
    except DOCUMENTED as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        assert target.read_bytes() == b"old", f"changed the file in spite of {found}"
    assert [p.name for p in folder.iterdir()] == ["model.tflite"]
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, model.get_weights(), strict=True))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    start, found, failed = time.perf_counter(), collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for done, seed in enumerate(range(args.start, args.start + args.count), 1):
            try:
                result = check_seed(seed, Path(folder))
                found["its process crashed" if "process crashed" in result else result.partition(":")[0]] += 1
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            if done % 50 == 0:
                print(f"{done} of {args.count}, {len(failed)} failed, {dict(found)}", flush=True)
    summary = {
        "suite": "fuzz_export",
        "count": args.count,
        "start": args.start,
        **found,
        "failed": failed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(summary))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

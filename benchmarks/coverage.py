"""Checks the library on every model of keras.applications and on KerasHub's backbones, one JSON line a model.

python benchmarks/coverage.py --out benchmarks/results/coverage.jsonl            # resumable; an hour on two cores
python benchmarks/coverage.py --family kerashub --out ...                        # needs pip install keras-hub

Half of the channels of every group are cut, and the pruned model is compared with the masked one. Layers that mix
channels statistically (layer and RMS normalization) take their statistics over the kept channels in the masked model, so
that the reference is exact for them too. Errors are relative to the largest output.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import keras
import numpy as np
from applications import SIZES, build, randomize
from keras import ops, tree
from rows import read, write

import keras_pcp

RELOAD = """
import sys, keras, numpy as np
if "keras_hub" in sys.argv: import keras_hub
for line in sys.stdin:
    file, data, out = line.split()
    try:
        model = keras.saving.load_model(file, safe_mode=False)
        x = np.load(data, allow_pickle=True).item()["x"]
        np.savez(out, *keras.tree.flatten(model(x, training=False)))
        print("done", "keras_pcp" in sys.modules, flush=True)
    except Exception as error:
        print(str(error).strip().splitlines()[-1][:200], flush=True)
    model = None
    keras.backend.clear_session()
"""


def inputs_of(model: keras.Model, batch: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)

    def values(tensor):
        shape = (batch, *(4 if size is None else size for size in tensor.shape[1:]))
        return rng.normal(size=shape).astype("float32") if "float" in tensor.dtype else rng.integers(0, 2, shape)

    return tree.map_structure(values, model.input)


def outputs_of(model: keras.Model, x) -> list[np.ndarray]:
    return [np.asarray(o) for o in tree.flatten(model(x, training=False))]


def relative_error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference relative to the largest value, over all outputs; NaN if an output says nothing."""
    errors = []
    for a, b in zip(found, expected, strict=True):
        scale = np.abs(b).max()
        telling = b.size == 1 or np.std(b) > 1e-6 * scale
        errors.append(np.abs(a - b).max() / scale if np.isfinite(scale) and scale > 0 and telling else np.nan)
    return float(np.max(errors))


def half(graph: keras_pcp.ChannelGraph) -> keras_pcp.Selection:
    """Keeps every second channel of every group."""
    return keras_pcp.Selection({group.name: np.arange(group.num_channels) % 2 == 0 for group in graph})


@contextmanager
def masked_with_statistics(model: keras.Model, graph, selection) -> Iterator[None]:
    """`masked`, and normalization over channels takes its statistics over the kept ones only."""
    kept: dict[str, np.ndarray] = {}
    for group in graph:
        for s in group.slices_of("follow", "scale"):
            mask = kept.setdefault(s.layer, np.ones(graph.weights[s.weight].shape[s.axis].size, "float32"))
            mask[s.positions] = selection.keep[group.name][s.channels]

    def over_kept(original: Callable, centred: bool, epsilon: str) -> Callable:
        def call(self, inputs, *args, **kwargs):
            mask = kept.get(self.name)
            if mask is None or mask.all():
                return original(self, inputs, *args, **kwargs)
            count = mask.sum()
            mean = ops.sum(inputs * mask, -1, keepdims=True) / count if centred else 0.0
            square = ops.sum(mask * (inputs - mean) ** 2, -1, keepdims=True) / count
            result = (inputs - mean) / ops.sqrt(square + getattr(self, epsilon)) * self.gamma
            return result + self.beta if getattr(self, "beta", None) is not None else result

        return call

    norm = keras.layers.LayerNormalization
    with keras_pcp.masked(model, graph, selection), ExitStack() as stack:
        stack.enter_context(mock.patch.object(norm, "call", over_kept(norm.call, True, "epsilon")))
        for cls in {type(op) for op in model._flatten_layers() if type(op).__name__ == "RmsNorm2d"}:
            stack.enter_context(mock.patch.object(cls, "call", over_kept(cls.call, False, "eps")))
        yield


def planted_error(model: keras.Model, graph) -> float:
    """Zeroes half of the channels of each exact group at their source, and lets the L1 criterion find and cut them."""
    rng, weights = np.random.default_rng(1), model.weights
    before = model.get_weights()
    exact = [group for group in graph if group.exact]
    for group in exact:
        dead = rng.permutation(group.num_channels)[: group.num_channels // 2]
        for s in (*group.slices_of("produce"), *group.slices_of("follow")):
            if s.part != "moving_variance":
                value = np.moveaxis(weights[s.weight].numpy(), s.axis, 0)
                value[s.positions[np.isin(s.channels, dead)]] = 0
                weights[s.weight].assign(np.moveaxis(value, 0, s.axis))
    x = inputs_of(model)
    expected = outputs_of(model, x)
    scores = keras_pcp.score_channels(model, graph, "l1")
    chosen = keras_pcp.select_by_ratio(graph, scores, 0.5, scope="local").keep
    selection = keras_pcp.Selection({group.name: chosen[group.name] for group in exact})
    error = relative_error(outputs_of(keras_pcp.prune_model(model, graph, selection), x), expected)
    model.set_weights(before)
    return error


class Checker:
    """Runs the checks; one clean process, which never imports keras_pcp, reloads all saved models."""

    def __init__(self, folder: Path, hub: bool):
        command = [sys.executable, "-c", RELOAD, *(["keras_hub"] if hub else [])]
        self.folder = folder
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)

    def reloaded(self, model: keras.Model, x) -> list[np.ndarray]:
        file, data, out = (self.folder / n for n in ("small.keras", "x.npy", "y.npz"))
        model.save(file)
        np.save(data, {"x": x}, allow_pickle=True)
        self.process.stdin.write(f"{file} {data} {out}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if answer != "done False\n":
            raise RuntimeError(f"the saved model could not be loaded in a clean process ({answer.strip()})")
        return list(np.load(out).values())

    def cut(self, model: keras.Model) -> tuple[dict, keras.Model, keras_pcp.ChannelGraph]:
        """Cuts half of every group and compares with the masked model and with the predicted cost."""
        graph = keras_pcp.build_graph(model, on_unknown="freeze")
        selection, x = half(graph), inputs_of(model)
        small = keras_pcp.prune_model(model, graph, selection)
        found = outputs_of(small, x)
        with masked_with_statistics(model, graph, selection):
            error = relative_error(found, outputs_of(model, x))
        predicted, counted = keras_pcp.count_cost(graph, selection), keras_pcp.count_cost(small)
        same = np.array_equal([predicted.macs, predicted.params], [counted.macs, counted.params], equal_nan=True)
        return {"error": error, "cost_equal": bool(same)}, small, graph

    def whole(self, model: keras.Model) -> dict:
        """All that is checked on one model."""
        row, small, graph = self.cut(model)
        report = keras_pcp.inspect_graph(graph)
        row |= {
            "layers": len(model.layers),
            "groups": len(graph),
            "exact_groups": sum(g.exact for g in graph),
            "prunable": report.prunable_channels / max(report.total_channels, 1),
            "macs": keras_pcp.count_cost(graph, half(graph)).macs / report.full.macs,
            "least_macs": report.least.macs / report.full.macs,
            "frozen": [[r.text, len(r.layers), r.num_channels] for r in report.frozen],
            "unknown": [[r.text, len(r.layers)] for r in report.notes],
            "blocks": len(graph.blocks),
        }
        x = inputs_of(small)
        row["reload_error"] = relative_error(self.reloaded(small, x), outputs_of(small, x))
        row["planted_error"] = planted_error(model, graph) if row["exact_groups"] else None
        try:
            file = keras_pcp.export_litert(small, self.folder / "small.tflite", representative_data=x)
            row["litert_error"] = file.max_error
        except keras_pcp.PruningError as error:
            row["litert_error"], row["litert_reason"] = None, str(error)[:300]
        return row


def trains_on(model: keras.Model) -> bool | None:
    """One training step before and one after a live shrink, with momentum: finite losses, changed weights.

    None if the model cannot even be trained before.
    """
    model = keras_pcp.inline_blocks(model)
    model.compile(
        keras.optimizers.SGD(1e-6, momentum=0.9), loss="mse", run_eagerly=True
    )  # two steps are not worth a trace
    x = inputs_of(model, 2)
    y = tree.map_structure(np.zeros_like, model(x, training=False))
    try:
        losses = [float(np.ravel(model.train_on_batch(x, y))[0])]
    except Exception:  # KerasHub has layers that need a known batch size in training
        return None
    graph = keras_pcp.build_graph(model, on_unknown="freeze")
    keras_pcp.shrink(model, graph, half(graph))
    before = model.get_weights()
    losses.append(float(np.ravel(model.train_on_batch(x, y))[0]))
    changed = any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    return bool(np.isfinite(losses).all() and changed)


def application(name: str, checker: Checker) -> dict:
    row = checker.whole(build(name))
    for pooling in ("avg", "max", None):
        keras.backend.clear_session()
        part, _, _ = checker.cut(build(name, small=True, include_top=False, pooling=pooling))
        row[f"error_{pooling}"] = part["error"]
        row["cost_equal"] &= part["cost_equal"]
    keras.backend.clear_session()
    row["trains_on"] = trains_on(build(name, small=True, include_top=False, pooling="avg"))
    return row


def backbone(name: str, checker: Checker) -> dict:
    import kerashub

    def made():
        model = {**kerashub.BACKBONES, **kerashub.TRANSFORMERS}[name]()
        randomize(model)
        return model

    model = made()
    x = inputs_of(model)
    row = {"inline_error": relative_error(outputs_of(keras_pcp.inline_blocks(model), x), outputs_of(model, x))}
    return row | checker.whole(model) | {"trains_on": trains_on(made())}


def names(family: str) -> list[str]:
    if family == "applications":
        return list(SIZES)
    import kerashub

    return [*kerashub.BACKBONES, *kerashub.TRANSFORMERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("applications", "kerashub"), default="applications")
    parser.add_argument("--models", help="names, separated by commas; default: all")
    parser.add_argument("--out", type=Path, help="file to append to; models that are in it already are left out")
    args = parser.parse_args()
    done = {r["model"] for r in read(args.out) if r["family"] == args.family}
    check = {"applications": application, "kerashub": backbone}[args.family]
    versions = {"keras_pcp": keras_pcp.__version__, "keras": keras.__version__}
    with tempfile.TemporaryDirectory() as folder:
        checker = Checker(Path(folder), args.family == "kerashub")
        for name in args.models.split(",") if args.models else names(args.family):
            if name in done:
                continue
            row = {"suite": "coverage", "family": args.family, "model": name}
            try:
                row |= check(name, checker)
            except Exception as error:  # a failure is a row of its own, so that the others are still checked
                row["failure"] = f"{type(error).__name__}: {error}"[:400]
            write(row | {"versions": versions}, args.out)
            keras.backend.clear_session()
            gc.collect()
        checker.process.stdin.close()


if __name__ == "__main__":
    main()

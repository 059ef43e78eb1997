"""Times analysis and surgery, one JSON line a model; run it on a machine with nothing else to do.

python benchmarks/speed.py --out benchmarks/results/speed.jsonl                   # all of keras.applications
python benchmarks/speed.py --against /path/to/python --out ...                    # side by side with Torch-Pruning
python benchmarks/speed.py --depths --out ...                                     # time per layer over depth

`--against` names a Python that has torch, torchvision and torch-pruning (pip install torch==2.13.0 torchvision
torch-pruning). Each model is then timed in turns in processes of their own: here from building the graph to the model
shrunk in place (L1 scores and selection included), there from building the dependency graph to `pruner.step()`.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rows import write

PAIRS = {
    "ResNet50": "resnet50",
    "ResNet152": "resnet152",
    "DenseNet121": "densenet121",
    "DenseNet201": "densenet201",
    "EfficientNetB7": "efficientnet_b7",
}
TORCH = """
import sys, time, torch
# torchvision's compiled part is not needed; without it, its import only asks that these operations are declared.
declared = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    declared.define(name + "(Tensor a, Tensor b, float c) -> Tensor")
import torchvision, torch_pruning as tp
torch.set_num_threads(2)
model = getattr(torchvision.models, sys.argv[1])(weights=None).eval()
head = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
x = torch.randn(1, 3, 224, 224)
start = time.perf_counter()
pruner = tp.pruner.MagnitudePruner(
    model, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=head
)
middle = time.perf_counter()
pruner.step()
print(middle - start, time.perf_counter() - middle, sum(p.numel() for p in model.parameters()))
"""


def timed(function: Callable):
    gc.collect()
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def ours(name: str) -> dict:
    """Seconds of every step on one model of keras.applications."""
    import keras
    from applications import build

    import keras_pcp

    for function in ("build_graph", "score_channels", "select_by_ratio", "prune_model", "shrink"):
        getattr(keras_pcp, function)  # imported at first use, which is not what is timed
    model = build(name)
    row = {"model": name, "layers": len(model.layers), "params": model.count_params()}
    # The first clone and copy pay for what TensorFlow sets up once.
    row["clone_s"] = min(timed(lambda: keras.models.clone_model(model))[0] for _ in range(2))
    row["graph_s"], graph = timed(lambda: keras_pcp.build_graph(model))
    row["select_s"], selection = timed(
        lambda: keras_pcp.select_by_ratio(graph, keras_pcp.score_channels(model, graph, "l1"), 0.5, scope="local")
    )
    row["prune_model_s"] = min(timed(lambda: keras_pcp.prune_model(model, graph, selection))[0] for _ in range(2))
    row["shrink_s"], _ = timed(lambda: keras_pcp.shrink(model, graph, selection))
    row["pruned_params"] = model.count_params()
    return row


def in_process(name: str) -> dict:
    return json.loads(subprocess.run([sys.executable, __file__, "--one", name], check=True, capture_output=True).stdout)


def side_by_side(python: str) -> Iterator[dict]:
    for name, other in PAIRS.items():
        for turn in range(2):
            mine = in_process(name)
            output = subprocess.run([python, "-c", TORCH, other], check=True, capture_output=True, text=True).stdout
            graph_s, cut_s, params = map(float, output.split()[-3:])
            total = mine["graph_s"] + mine["select_s"] + mine["shrink_s"]
            yield mine | {
                "suite": "torch_pruning",
                "turn": turn,
                "total_s": total,
                "torch_graph_s": graph_s,
                "torch_cut_s": cut_s,
                "torch_pruned_params": params,
                "ratio": (graph_s + cut_s) / total,
            }


def depths() -> Iterator[dict]:
    """Residual, densely connected and plain networks of growing depth."""
    import keras

    import keras_pcp

    L = keras.layers

    def residual(x):
        y = L.Conv2D(16, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))
        return L.Add()([x, y])

    def plain(x):
        return L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, padding="same")(x)))

    def dense(x):
        y = L.Conv2D(4, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))
        return L.Concatenate()([x, y])

    for kind, block in (("plain", plain), ("residual", residual), ("densely connected", dense)):
        for depth in (10, 20, 40, 80, 160, 320):
            if kind == "densely connected" and depth > 160:
                continue  # its kernels, not its layers, grow with the square of the depth
            x = i = keras.Input((8, 8, 3))
            x = L.Conv2D(16, 3, padding="same")(x)
            for _ in range(depth):
                x = block(x)
            model = keras.Model(i, L.Dense(10)(L.GlobalAveragePooling2D()(x)))
            graph_s, graph = min(
                (timed(lambda m=model: keras_pcp.build_graph(m)) for _ in range(3)), key=lambda t: t[0]
            )
            selection = keras_pcp.select_by_ratio(graph, keras_pcp.score_channels(model, graph), 0.5, scope="local")
            shrink_s, _ = timed(lambda m=model, g=graph, s=selection: keras_pcp.shrink(m, g, s))
            yield {
                "suite": "depth",
                "kind": kind,
                "depth": depth,
                "layers": len(model.layers),
                "graph_s": graph_s,
                "shrink_s": shrink_s,
            }
            del model, graph
            keras.backend.clear_session()


def all_models() -> Iterator[dict]:
    from applications import SIZES

    with ThreadPoolExecutor(2) as pool:  # each model has a process of its own, two run at a time
        for row in pool.map(in_process, SIZES):
            yield row | {"suite": "speed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a Python with torch-pruning")
    parser.add_argument("--depths", action="store_true")
    parser.add_argument("--out", type=Path, help="file to append to")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(ours(args.one)))
        return
    for row in side_by_side(args.against) if args.against else depths() if args.depths else all_models():
        write(row, args.out)


if __name__ == "__main__":
    main()

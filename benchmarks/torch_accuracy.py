"""Prunes and tunes with Torch-Pruning what `hand_over.py` wrote; `accuracy.py --against` runs it with another Python.

Needs torch, torch-pruning and numpy. Prints one JSON line.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

IMPORTANCE = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "fpgm": tp.importance.FPGMImportance,
    "bn_scale": tp.importance.BNScaleImportance,
    "l2_global": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor_global": tp.importance.GroupTaylorImportance,
}


class Network(nn.Module):
    """Computes the listed steps."""

    def __init__(self, steps: list[dict], arrays: dict[str, np.ndarray]):
        super().__init__()
        self.steps, self.parts = steps, nn.ModuleDict()
        for step in steps:
            given = {k.split()[1]: torch.tensor(v) for k, v in arrays.items() if k.split()[0] == step["name"]}
            if not given:
                continue
            shape, kind = given["weight"].shape, step["kind"]
            if kind in ("conv", "depthwise"):
                groups = shape[0] if kind == "depthwise" else 1
                size, bias = (shape[1] * groups, shape[0], shape[2:], step["strides"]), "bias" in given
                part = nn.Conv2d(*size, groups=groups, bias=bias)
            elif kind == "dense":
                part = nn.Linear(shape[1], shape[0], bias="bias" in given)
            else:
                part = (nn.BatchNorm2d if self.is_map(step) else nn.BatchNorm1d)(shape[0], eps=step["epsilon"])
            part.load_state_dict(given, strict=False)
            self.parts[step["name"]] = part

    def is_map(self, step: dict) -> bool:
        """Whether a step reads maps: no dense layer, mean or flattening lies before it."""
        made = {s["output"]: s for s in self.steps}
        while step["inputs"][0] in made:
            step = made[step["inputs"][0]]
            if step["kind"] in ("dense", "mean", "flatten"):
                return False
        return True

    def forward(self, x):
        values = {self.steps[0]["inputs"][0]: x}
        for step in self.steps:
            inputs, kind = [values[i] for i in step["inputs"]], step["kind"]
            part = self.parts[step["name"]] if step["name"] in self.parts else None
            if kind in ("conv", "depthwise") and step["padding"] == "same":
                y = part(F.pad(inputs[0], same_padding(inputs[0].shape[2:], part.kernel_size, part.stride)))
            elif part is not None:
                y = part(inputs[0])
            elif kind == "add":
                y = sum(inputs[1:], inputs[0])
            else:
                y = without_weights(kind, step, inputs[0], self.training)
            values[step["output"]] = y
        return y


def without_weights(kind: str, step: dict, x: torch.Tensor, training: bool) -> torch.Tensor:
    """Computes a step of one input that has no weights."""
    if kind == "same":
        return x
    if kind == "relu":
        return F.relu(x) if step["most"] is None else x.clamp(0, step["most"])
    if kind == "dropout":
        return F.dropout(x, step["rate"], training)
    if kind == "rescale":
        return x * step["scale"] + step["offset"]
    if kind == "resize":
        return F.interpolate(x, step["size"], mode="bilinear", align_corners=False)
    if kind == "pool":
        return F.max_pool2d(x, step["size"])
    if kind == "normalize":
        mean, variance = (torch.tensor(step[k])[:, None, None] for k in ("mean", "variance"))
        return (x - mean) / torch.sqrt(variance).clamp_min(1e-7)
    if kind == "zeros":
        return F.pad(x, step["amounts"])
    if kind == "every":
        return x[:, :, :: step["steps"][0], :: step["steps"][1]]
    if kind == "widen":
        return F.pad(x, (0, 0, 0, 0, *step["amounts"]))
    return {"flatten": lambda v: v.flatten(1), "mean": lambda v: v.mean((2, 3))}[kind](x)


def tied_by_zeros(model: Network) -> list[nn.Module]:
    """Returns the convolutions whose channels are those of a zero-padded shortcut, which Torch-Pruning cannot follow."""
    stream = {s["output"]: s["output"] for s in model.steps}

    def first(tensor: int) -> int:
        while stream.get(tensor, tensor) != tensor:
            tensor = stream[tensor]
        return tensor

    for step in model.steps:
        if step["kind"] not in ("conv", "depthwise", "dense"):
            for tensor in step["inputs"]:
                stream[first(tensor)] = first(step["output"])
    padded = {first(s["output"]) for s in model.steps if s["kind"] == "widen"}
    return [model.parts[s["name"]] for s in model.steps if s["kind"] == "conv" and first(s["output"]) in padded]


def set_gradients(model: nn.Module, folder: Path, batches: int = 2) -> None:
    """Leaves the gradients of the loss on the first training batches in the weights."""
    data = np.load(folder / "train0.npz")
    model.eval()
    model.zero_grad()
    for x, y in zip(torch.tensor(data["x"][:batches]), torch.tensor(data["y"][:batches]).long(), strict=True):
        F.cross_entropy(model(x), y).backward()


def same_padding(sizes, kernel, strides) -> list[int]:
    """TensorFlow's padding, in the order that `F.pad` wants."""
    found = []
    for size, k, s in reversed(list(zip(sizes, kernel, strides, strict=True))):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        found += [total // 2, total - total // 2]
    return found


def accuracy(model: nn.Module, data: dict) -> float:
    model.eval()
    with torch.no_grad():
        found = [model(x).argmax(1) for x in torch.tensor(data["x"]).split(500)]
    return float((torch.cat(found).numpy() == data["y"]).mean())


def tuned(model: nn.Module, folder: Path, epochs: int, rate: float) -> int:
    """Stochastic gradient descent with a cosine schedule on the handed over batches; returns the number of images."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule, images = None, 0
    for epoch in range(epochs):
        data = np.load(folder / f"train{epoch}.npz")
        x, y = torch.tensor(data["x"]), torch.tensor(data["y"]).long()
        schedule = schedule or torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(x) * epochs)
        for batch, labels in zip(x, y, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels).backward()
            optimizer.step()
            schedule.step()
            images += len(batch)
    return images


def reestimate_batch_norm(model: nn.Module, folder: Path, count: int = 16) -> None:
    """Sets the statistics of batch normalization to their means over some of the training batches."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # a cumulative mean
    model.train()
    with torch.no_grad():
        for batch in torch.tensor(np.load(folder / "train0.npz")["x"][:count]):
            model(batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--criterion", default="l1", choices=sorted(IMPORTANCE))
    parser.add_argument("--target", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Network(json.loads((args.folder / "network.json").read_text()), dict(np.load(args.folder / "weights.npz")))
    val, test = (dict(np.load(args.folder / f"{name}.npz")) for name in ("val", "test"))
    unpruned, example = accuracy(model, test), torch.tensor(test["x"][:1])
    full = tp.utils.count_ops_and_params(model, example)
    started = time.perf_counter()
    last = model.parts[model.steps[-1]["name"]]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=IMPORTANCE[args.criterion](),
        pruning_ratio=0.95,
        iterative_steps=200,
        global_pruning=args.criterion.endswith("global"),
        ignored_layers=[last, *tied_by_zeros(model)],
    )
    while tp.utils.count_ops_and_params(model, example)[0] > args.target * full[0]:
        if args.criterion.startswith("taylor"):
            set_gradients(model, args.folder)
        pruner.step()
    here = tp.utils.count_ops_and_params(model, example)
    before = accuracy(model, test)
    images = tuned(model, args.folder, args.epochs, args.rate)
    reestimate_batch_norm(model, args.folder)
    row = {
        "macs": round(here[0] / full[0], 4),
        "params": round(here[1] / full[1], 4),
        "acc_unpruned": unpruned,
        "acc_before_tuning": before,
        "val_acc": accuracy(model, val),
        "acc": accuracy(model, test),
        "seconds": round(time.perf_counter() - started, 1),
        "images": images,
        "versions": {"torch": torch.__version__, "torch_pruning": tp.__version__},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()

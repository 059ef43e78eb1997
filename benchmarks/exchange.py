"""Whether widths that progressive pruning found get better by exchange: one group gets channels back, another gives some.

    python benchmarks/exchange.py --model resnet20_cifar10.keras --data cifar10 --held-out test \
        --rows benchmarks/results/progressive.jsonl --out benchmarks/results/exchange.jsonl

Starts from the widths in rows of accuracy.py. In a round, each group in turn gets channels for a part of the limit (the
gain), and gives channels for as much (the harm). Gain and harm are changes of the loss on validation samples after cut,
refit and re-estimated batch normalization. Of the pairs with the best sum, some are tried in truth, and the best is
accepted if the loss falls. Rounds end when none does.

The widths before and after are then cut in one piece from the unpruned network, refit, and tuned alike. Compare `val_acc`.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rows import read, write
from trained_model import accuracy, add_arguments, batches, opened, prepared

import keras_pcp


class Widths:
    """The unpruned network, what it costs, and the loss that it has with fewer channels."""

    def __init__(self, args, criterion: str, limit: float, train, val):
        self.model, self.x, self.val = opened(args), train[0], tuple(array[: args.samples] for array in val)
        self.graph = keras_pcp.build_graph(self.model)
        scores = keras_pcp.score_channels(self.model, self.graph, criterion)
        self.order = {name: np.argsort(-s, kind="stable") for name, s in scores.items()}
        self.most = limit * keras_pcp.count_cost(self.graph).macs
        self.refit_samples, self.losses = args.refit_samples, {}

    def selection(self, widths: dict[str, int]) -> keras_pcp.Selection:
        """Returns the selection of the best channels of each group."""
        found = {name: np.zeros(len(order), bool) for name, order in self.order.items()}
        for name, mask in found.items():
            mask[self.order[name][: widths[name]]] = True
        return keras_pcp.Selection(found)

    def macs(self, widths: dict[str, int]) -> int:
        return keras_pcp.count_cost(self.graph, self.selection(widths)).macs

    def cut(self, widths: dict[str, int], samples: int) -> keras.Model:
        """Returns the network with these widths, refit."""
        selection = self.selection(widths)
        small = keras_pcp.prune_model(self.model, self.graph, selection)
        keras_pcp.refit(self.model, small, self.graph, selection, self.x[:samples])
        keras_pcp.reestimate_batch_norm(small, self.x[:512])
        return small

    def loss(self, widths: dict[str, int]) -> float:
        """Returns the loss on the validation samples after cut and refit."""
        key = tuple(widths.values())
        if key not in self.losses:
            outputs = self.cut(widths, self.refit_samples).predict(self.val[0], batch_size=256, verbose=0)
            entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            self.losses[key] = float(entropy(self.val[1], outputs))
            keras.backend.clear_session()
        return self.losses[key]

    def moved(self, widths: dict[str, int], name: str, sign: int, macs: float) -> dict[str, int] | None:
        """Returns widths in which a group gets (or gives) channels until about so many MACs are added (or saved)."""
        start, width = self.macs(widths), widths[name] + sign
        while 1 <= width <= len(self.order[name]):
            found = widths | {name: width}
            if abs(self.macs(found) - start) >= macs:
                return found
            width += sign
        return None

    def exchanges(self, widths: dict[str, int], macs: float) -> list[tuple[float, dict[str, int]]]:
        """Returns (expected change of the loss, widths) of all exchanges that stay within the limit, best first."""
        start, changes, found = self.loss(widths), {}, []
        for name, sign in itertools.product(widths, (1, -1)):
            moved = self.moved(widths, name, sign, macs)
            if moved:
                changes[name, sign] = self.loss(moved) - start
        for (gets, up), (gives, down) in itertools.permutations(changes, 2):
            if (up, down) == (1, -1) and gets != gives:
                more = self.moved(widths, gets, 1, macs)
                less = self.moved(more, gives, -1, self.macs(more) - min(self.macs(widths), self.most))
                if less:
                    found.append((changes[gets, 1] + changes[gives, -1], less))
        return sorted(found, key=lambda pair: pair[0])


def exchanged(space: Widths, widths: dict[str, int], part: float, tries: int, rounds: int):
    """Returns the widths after all exchanges that lower the loss, and the losses on the way."""
    losses = [space.loss(widths)]
    for _ in range(rounds):
        candidates = [found for _, found in space.exchanges(widths, part * space.most)[:tries]]
        best = min(candidates, key=space.loss, default=widths)
        if space.loss(best) >= losses[-1]:
            break
        widths = best
        losses.append(space.loss(widths))
        print(f"loss {losses[-1]:.4f} with {widths}", flush=True)
    return widths, losses


def tuned(args, space: Widths, widths: dict[str, int], seed: int, data) -> dict:
    """Cuts, refits and trains; returns what was reached."""
    (x, y), val, test = data
    keras.utils.set_random_seed(seed)
    model = space.cut(widths, 2000)
    found = {"val_acc_cut": accuracy(model, *val)}
    rate = keras.optimizers.schedules.CosineDecay(args.rate, len(x) // args.batch * args.epochs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-4), loss)
    model.fit(batches(x, y, args.batch, seed, 2, flip=True), epochs=args.epochs, verbose=0)
    keras_pcp.reestimate_batch_norm(model, x)
    return found | {"val_acc": accuracy(model, *val), "acc": accuracy(model, *test)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rows", type=Path, required=True, help="rows of accuracy.py, with widths")
    parser.add_argument("--criterion", default="group_l1")
    parser.add_argument("--targets", default="0.25")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--part", type=float, default=0.03, help="size of a move, as a part of the limit")
    parser.add_argument("--tries", type=int, default=8, help="exchanges tried in truth, in a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--samples", type=int, default=1024, help="validation samples for the loss")
    parser.add_argument("--refit-samples", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=10000)
    args = parser.parse_args()
    train, *held_out = prepared(args)
    data = (tuple(array[: args.images] for array in train), *held_out)
    name, limits, seeds = Path(args.model).stem, args.targets.split(","), args.seeds.split(",")
    done = [(r["seed"], r["target"], r["exchanged"]) for r in read(args.out)]
    for row in read(args.rows):
        seed, limit = row["seed"], row["target"]
        asked = str(limit) in limits and str(seed) in seeds
        same = (name, "pcp", args.criterion) == (row["model"], row["method"], row["criterion"])
        if not (asked and same) or (seed, limit, True) in done:
            continue
        space, started = Widths(args, args.criterion, limit, data[0], held_out[0]), time.perf_counter()
        after, losses = exchanged(space, row["widths"], args.part, args.tries, args.rounds)
        seconds = time.perf_counter() - started
        for widths, changed in ((row["widths"], False), (after, True)):
            found = {"suite": "exchange", "model": name, "criterion": args.criterion, "target": limit, "seed": seed}
            found |= {"exchanged": changed, "macs": round(space.macs(widths) / space.most * limit, 4), "widths": widths}
            found |= {"losses": losses if changed else losses[:1], "seconds": round(seconds * changed, 1)}
            versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
            found |= tuned(args, space, widths, seed, data) | {"versions": versions}
            write(found | {"command": "python " + " ".join(sys.argv)}, args.out)


if __name__ == "__main__":
    main()

"""Times training steps: of a network pruned to some widths, and of a super-net, against the unpruned network.

    python benchmarks/step_time.py --model resnet20_cifar10.keras --out benchmarks/results/step_time.jsonl

Nothing else should run on the machine. All of them train on the same random images, in turn, for some rounds; a row gives
the median step of all rounds, in seconds and in units of the unpruned network's. Widths are those of the groups whose names
end in "conv1", in the order of the graph, for ResNet-20 with zero-padded shortcuts.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import keras
import numpy as np
from rows import write

import keras_pcp

WIDTHS = (
    (13, 8, 10, 8, 16, 18, 18, 32, 41, 39),  # what adaptive pruning chose at 50%
    (12, 8, 10, 8, 16, 18, 18, 32, 41, 39),
    (12, 8, 8, 8, 16, 16, 16, 32, 40, 40),
    (16, 8, 8, 8, 16, 16, 16, 32, 40, 40),
    (13, 8, 8, 8, 16, 16, 16, 32, 40, 40),
)


class Steps(keras.callbacks.Callback):
    """The times between the ends of steps."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def pruned(path, widths):
    """Returns the network with these widths, which keeps the first channels, and its share of the MACs.

    The widths are those of the groups that the stem and the first convolutions of the blocks make. Channels that a later
    stage adds to its shortcuts stay.
    """
    model = keras.models.load_model(path, compile=False)
    graph = keras_pcp.build_graph(model)
    named = [group for group in graph if group.name.endswith("conv1")]
    keep = {group.name: np.arange(group.num_channels) < width for group, width in zip(named, widths, strict=True)}
    small = keras_pcp.prune_model(model, graph, keras_pcp.Selection(keep))
    return small, keras_pcp.count_cost(small).macs / keras_pcp.count_cost(model).macs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    networks = {"unpruned": (keras.models.load_model(args.model, compile=False), 1.0)}
    networks |= {" ".join(map(str, widths)): pruned(args.model, widths) for widths in WIDTHS}
    for stages in (3, 1):
        supernet = keras_pcp.StagewiseSupernet(keras.models.load_model(args.model, compile=False), stages)
        networks[f"super-net of {stages} stages, four networks"] = supernet, None
    inputs = networks["unpruned"][0].input.shape[1:]
    rng = np.random.default_rng(0)
    x = rng.random((args.batch * args.steps, *inputs), "float32")
    y, found = rng.integers(0, networks["unpruned"][0].output.shape[-1], len(x)), {name: [] for name in networks}
    for model, _ in networks.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
        model.fit(x, y, batch_size=args.batch, verbose=0)
    for _ in range(args.rounds):
        for name, (model, _) in networks.items():
            steps = Steps()
            model.fit(x, y, batch_size=args.batch, verbose=0, callbacks=[steps])
            found[name] += np.diff(steps.ends).tolist()
    whole = statistics.median(found["unpruned"])
    for name, (_, macs) in networks.items():
        step = statistics.median(found[name])
        row = {"suite": "step_time", "model": Path(args.model).stem, "network": name, "macs": macs and round(macs, 4)}
        row |= {
            "seconds": round(step, 4),
            "ratio": round(step / whole, 3),
            "batch": args.batch,
            "steps": len(found[name]),
        }
        write({**row, "command": "python " + " ".join(sys.argv)}, args.out)


if __name__ == "__main__":
    main()

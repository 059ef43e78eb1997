"""How well the score of a sub-net tells its accuracy: super-nets trained stage by stage, against a plain one.

    python benchmarks/supernet.py --model resnet20_cifar10.keras --data cifar10 --held-out test \
        --out benchmarks/results/supernet.jsonl

1. Draws sub-nets: 24 between 25% and 60% of the MACs, and 24 at 40%. Each is cut out of the given network, and all are tuned
   alike for a short time. Their accuracy on the test images is what a score has to tell.
2. Trains super-nets from the given weights, with three stages and with one (a plain super-net), with the same number of
steps. 3. Scores the sub-nets by each super-net on validation images, and writes Kendall's tau between score and accuracy.
4. Searches by each super-net, cuts what it finds out of the given network, and tunes it like the others, to compare it with
   uniform and random widths. "Inherited": cut out of the super-net instead, which has trained for longer.

Rows that are already in the output file are skipped, so an interrupted run continues where it stopped.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np
from rows import read, write
from trained_model import accuracy, add_arguments, batches, opened, prepared

import keras_pcp
from keras_pcp.select.problem import Limits, Problem
from keras_pcp.supernet.scoring import Scorer
from keras_pcp.supernet.stages import whole

SETS = {"25% to 60%": (0.25, 0.6), "40%": (0.395, 0.405)}


def compiled(model, rate, steps):
    """Compiles for a training of this number of steps."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=1e-4), loss, metrics=["accuracy"])
    return model


def tuned(model, args, data, seed):
    """Tunes a model for a short time; returns its accuracies on validation and test images, and seconds."""
    (x, y), val, test = data
    x, y = x[: args.tune_images], y[: args.tune_images]
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    keras_pcp.reestimate_batch_norm(model, x, seed=seed)
    compiled(model, args.tune_rate, len(x) // args.batch * args.tune_epochs)
    model.fit(batches(x, y, args.batch, seed, 2, flip=True), epochs=args.tune_epochs, verbose=0)
    keras_pcp.reestimate_batch_norm(model, x, seed=seed)
    found = {"val_acc": accuracy(model, *val), "acc": accuracy(model, *test)}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def drawn_subnets(supernet, between, count):
    """Returns levels of random sub-nets, (sub-nets, groups), whose share of the MACs lies between two numbers."""
    plan, rng, found = supernet.plan, np.random.default_rng(0), []
    graph, groups = plan.graph, np.arange(len(plan.levels))
    full = keras_pcp.count_cost(graph).macs
    while len(found) < count:
        low, high = sorted(rng.integers(0, plan.levels.shape[1] + 1, 2))
        levels = rng.integers(low, max(high, low + 1), len(groups)).clip(max=plan.levels.shape[1] - 1)
        share = keras_pcp.count_cost(graph, selected(supernet, levels)).macs / full
        if between[0] <= share <= between[1]:
            found.append(levels)
    return np.array(found)


def selected(supernet, levels):
    """Returns the selection of a sub-net, by the order of channels that the super-net has."""
    widths = supernet.plan.levels[np.arange(len(levels)), levels]
    return supernet.plan.gating.selection(widths, keras.ops.convert_to_numpy(supernet.ranks))


def kendall_tau(a, b):
    """Returns Kendall's tau-b."""
    upper = np.triu_indices(len(a), 1)
    first, second = (np.sign(np.subtract.outer(v, v))[upper] for v in (np.asarray(a), np.asarray(b)))
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def trained(args, data, stages, seed):
    """Returns a trained super-net, from a file if it has been trained before."""
    file = Path(args.folder) / f"supernet_{Path(args.model).stem}_{stages}_{args.sampling}_{seed}.keras"
    if file.exists():
        return keras.models.load_model(file), None
    (x, y), *_ = data
    x, y = x[: args.images], y[: args.images]
    keras.utils.set_random_seed(seed)
    supernet = keras_pcp.StagewiseSupernet(
        opened(args), stages, samples=args.samples, sampling=args.sampling, seed=seed
    )
    compiled(supernet, args.rate, len(x) // args.batch * args.epochs)
    started = time.perf_counter()
    images = batches(x, y, args.batch, seed, 2, flip=True)
    supernet.fit(images, epochs=args.epochs, verbose=args.verbose)
    seconds = time.perf_counter() - started
    supernet.save(file)
    return supernet, seconds


def scores_of(supernet, levels, val, samples):
    """Returns {name of a score: its value for each sub-net}; lower is better."""
    plan, groups = supernet.plan, np.arange(len(supernet.plan.levels))
    x, y = val[0][:samples], val[1][:samples]
    staged, alone = Scorer(supernet, x), Scorer(supernet, x, [whole(plan.trace)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = {"sum of stages": [], "whole": [], "loss": [], "error rate": []}
    for row in levels:
        widths = plan.levels[groups, row]
        found["sum of stages"].append(sum(staged.score(number, widths) for number in range(len(plan.stages))))
        found["whole"].append(alone.score(0, widths))
        [logits] = alone.outputs(0, widths).values()
        found["loss"].append(float(loss(y, logits)))
        found["error rate"].append(float(np.mean(np.argmax(logits, -1) != y)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--stages", default="3,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--subnets", type=int, default=24)
    parser.add_argument("--sampling", default="prefix")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--score-samples", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--tune-rate", type=float, default=0.02)
    parser.add_argument("--tune-epochs", type=int, default=1)
    parser.add_argument("--tune-images", type=int, default=10000)
    parser.add_argument("--limits", default="0.5,0.25")
    parser.add_argument("--random", type=int, default=16, help="random widths to compare a search with")
    parser.add_argument("--parts", default="truth,scores,search")
    parser.add_argument("--folder", default=".", help="where trained super-nets are kept")
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    data, name = prepared(args), Path(args.model).stem
    first = keras_pcp.StagewiseSupernet(opened(args), 1)  # for the draw; its order of channels is that of all
    same = {"suite": "supernet", "model": name, "data": args.data, "command": "python " + " ".join(sys.argv)}
    parts, seeds = args.parts.split(","), [int(seed) for seed in args.seeds.split(",")]
    if "truth" in parts:
        known = {(r["set"], r["number"]) for r in read(args.out) if r["kind"] == "truth"}
        for kind, between in SETS.items():
            for number, levels in enumerate(drawn_subnets(first, between, args.subnets)):
                if (kind, number) not in known:
                    small = keras_pcp.prune_model(first.model, first.plan.graph, selected(first, levels))
                    share = keras_pcp.count_cost(small).macs / keras_pcp.count_cost(first.model).macs
                    row = {
                        "kind": "truth",
                        "set": kind,
                        "number": number,
                        "levels": levels.tolist(),
                        "macs": round(share, 4),
                    }
                    write({**same, **row, **tuned(small, args, data, 0)}, args.out)
                    keras.backend.clear_session()
    for seed in seeds:
        for stages in map(int, args.stages.split(",")):
            supernet, seconds = trained(args, data, stages, seed)
            which = {"stages": stages, "sampling": args.sampling, "seed": seed}
            done = [r for r in read(args.out) if all(r.get(k) == v for k, v in which.items())]
            if "scores" in parts and not any(r["kind"] == "scores" for r in done):
                full = accuracy(supernet.model, *data[2])
                row = {"kind": "scores", **which, "seconds": seconds, "acc_full": full, "tau": {}, "scores": {}}
                for kind, between in SETS.items():
                    truth = [r["acc"] for r in read(args.out) if r["kind"] == "truth" and r["set"] == kind]
                    levels = drawn_subnets(first, between, args.subnets)
                    row["scores"][kind] = scores_of(supernet, levels, data[1], args.score_samples)
                    row["tau"][kind] = {
                        k: round(kendall_tau(v, [-t for t in truth]), 4) for k, v in row["scores"][kind].items()
                    }
                write({**same, **row}, args.out)
            for limit in map(float, args.limits.split(",")):
                if "search" in parts and not any(r["kind"] == "search" and r["limit"] == limit for r in done):
                    found = supernet.search(
                        max_macs=limit, validation_data=data[1], samples=512, seed=seed, verbose=False
                    )
                    share = found.cost["macs"] / keras_pcp.count_cost(supernet.plan.graph).macs
                    row = {"kind": "search", **which, "limit": limit, "macs": round(share, 4), "error": found.error}
                    row |= {"evaluations": found.evaluations, "search_seconds": found.seconds}
                    small = keras_pcp.prune_model(first.model, first.plan.graph, found.selection)
                    write({**same, **row, **tuned(small, args, data, seed)}, args.out)
                    write(
                        {**same, **row, "kind": "search, inherited", **tuned(found.model, args, data, seed)}, args.out
                    )
                    small = keras_pcp.prune_model(supernet.model, supernet.plan.graph, uniform(first, limit))
                    write({**same, **row, "kind": "uniform, inherited", **tuned(small, args, data, seed)}, args.out)
            keras.backend.clear_session()
    if "search" in parts:
        for seed in seeds:
            for limit in map(float, args.limits.split(",")):
                controls(args, data, first, same, seed, limit)


def uniform(supernet, limit):
    """Returns the selection with the same rate for all groups."""
    scores = keras_pcp.score_channels(supernet.model, supernet.plan.graph, "l1")
    return keras_pcp.select_by_cost(supernet.plan.graph, scores, max_macs=limit, scope="local")


def controls(args, data, supernet, same, seed, limit):
    """Tunes the given network with uniform widths, and with random ones."""
    model, graph = supernet.model, supernet.plan.graph
    problem = Problem.of(graph, Limits(max_macs=limit))
    full, known = problem.full.macs, read(args.out)
    candidates = {"uniform": uniform(supernet, limit)}
    if seed == 0:
        levels = drawn_subnets(supernet, (limit - 0.01, limit), args.random)
        candidates |= {f"random {i}": selected(supernet, row) for i, row in enumerate(levels)}
    for name, selection in candidates.items():
        if not any((r["kind"], r.get("seed"), r.get("limit")) == (name, seed, limit) for r in known):
            small = keras_pcp.prune_model(model, graph, selection)
            row = {"kind": name, "seed": seed, "limit": limit, "macs": round(problem.cost(selection).macs / full, 4)}
            write({**same, **row, **tuned(small, args, data, seed)}, args.out)


if __name__ == "__main__":
    main()

"""How well the score of a sub-net tells its accuracy, and what a search finds: stage by stage, and with a plain super-net.

    python benchmarks/supernet.py --model resnet20_cifar10.keras --data cifar10 --held-out test \
        --out benchmarks/results/supernet.jsonl

Parts, all by default; `--parts` chooses:
    truth: Draws different sub-nets: `--subnets` between 25% and 60% of the MACs, and as many at 40%. Each is cut out of
        the given network, and all are tuned alike for a short time, once for each seed. Their accuracy on test images is
        what a score has to tell.
    scores: Trains super-nets from the given weights, with three stages and with one (a plain super-net), with the same
        number of steps, and scores the sub-nets by each on validation images. `tables.py` computes Kendall's tau.
    search: Searches by each super-net: by dynamic programming with several stages, and by evolution, as the literature
        does, with one. Cuts what it finds out of the given network, and tunes it like the others.
    controls: Tunes uniform and random widths alike, and prunes in a fit of as many epochs by `ProgressivePruning` and
        `AdaptivePruning`.
    methods: Compares dynamic programming with evolution on the scores of super-nets. The evolution "whole" scores whole
        sub-nets, as the literature does; "anew" scores the stages of every sub-net; "evolution" does so, each option once.

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
from keras_pcp.supernet.evolution import evolve
from keras_pcp.supernet.growing import StageTables
from keras_pcp.supernet.scoring import StageErrors

SETS = {"25% to 60%": (0.25, 0.6), "40%": (0.395, 0.405)}


def compiled(model, rate, steps):
    """Compiles for a training of this number of steps."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=1e-4), loss, metrics=["accuracy"])
    return model


def tuned(model, args, data, seed, callbacks=()):
    """Tunes a model for a short time; returns its accuracies on validation and test images, and seconds."""
    (x, y), val, test = data
    x, y = x[: args.tune_images], y[: args.tune_images]
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    compiled(model, args.tune_rate, len(x) // args.batch * args.tune_epochs)
    images = batches(x, y, args.batch, seed, 2, flip=True)
    model.fit(images, epochs=args.tune_epochs, callbacks=list(callbacks), verbose=0)
    keras_pcp.reestimate_batch_norm(model, x, seed=seed)
    found = {"val_acc": accuracy(model, *val), "acc": accuracy(model, *test)}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def drawn_subnets(supernet, between, count, draw=0):
    """Returns levels of different random sub-nets, (sub-nets, groups), whose share of the MACs lies between two numbers."""
    plan, rng, found = supernet.plan, np.random.default_rng(draw), {}
    graph, groups = plan.graph, np.arange(len(plan.levels))
    full = keras_pcp.count_cost(graph).macs
    while len(found) < count:
        low, high = sorted(rng.integers(0, plan.levels.shape[1] + 1, 2))
        levels = rng.integers(low, max(high, low + 1), len(groups)).clip(max=plan.levels.shape[1] - 1)
        share = keras_pcp.count_cost(graph, selected(supernet, levels)).macs / full
        if between[0] <= share <= between[1]:
            found[tuple(levels)] = levels
    return np.array(list(found.values()))


def selected(supernet, levels):
    """Returns the selection of a sub-net, by the order of channels that the super-net has."""
    widths = supernet.plan.levels[np.arange(len(levels)), levels]
    return supernet.plan.gating.selection(widths, keras.ops.convert_to_numpy(supernet.ranks))


def file_of(args, stages, seed):
    """Returns where a trained super-net is kept."""
    return (
        Path(args.folder)
        / f"supernet_{Path(args.model).stem}_{stages}_{args.sampling}_{args.stage_inputs}_{seed}.keras"
    )


def trained(args, data, stages, seed):
    """Returns a trained super-net, from a file if it has been trained before."""
    file = file_of(args, stages, seed)
    if file.exists():
        return keras.models.load_model(file), None
    (x, y), *_ = data
    x, y = x[: args.images], y[: args.images]
    keras.utils.set_random_seed(seed)
    supernet = keras_pcp.StagewiseSupernet(
        opened(args), stages, samples=args.samples, sampling=args.sampling, stage_inputs=args.stage_inputs, seed=seed
    )
    compiled(supernet, args.rate, len(x) // args.batch * args.epochs)
    started = time.perf_counter()
    images = batches(x, y, args.batch, seed, 2, flip=True)
    supernet.fit(images, epochs=args.epochs, verbose=args.verbose)
    seconds = time.perf_counter() - started
    supernet.save(file)
    return supernet, seconds


def scores_of(supernet, levels, val, samples):
    """Returns {name of a score: its value for each sub-net}, lower is better."""
    plan, (x, y) = supernet.plan, (part[:samples] for part in val)
    errors, loss = StageErrors(supernet, x), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stages = np.array([errors.of_all(row) for row in levels])
    widths = [plan.levels[np.arange(len(row)), row] for row in levels]
    logits = [np.asarray(errors.scorer.outputs(None, w)[plan.trace.outputs[0]]) for w in widths]
    found = {
        "stages": stages.sum(1).tolist(),
        "whole": [errors.whole(row) for row in levels],
        "loss": [float(loss(y, z)) for z in logits],
        "error rate": [float(np.mean(z.argmax(-1) != y)) for z in logits],
    }
    return found


def sets(args):
    """Returns the name and the range of each set of sub-nets."""
    return [(name, SETS[name]) for name in args.sets.split(";")]


def truth(args, data, first):
    """Yields the rows of tuned sub-nets, as functions that compute them, with what names each."""
    full = keras_pcp.count_cost(first.model).macs
    for seed in numbers(args.seeds):
        for kind, between in sets(args):
            for number, levels in enumerate(drawn_subnets(first, between, args.subnets, args.draw)):

                def row(levels=levels, seed=seed):
                    small = keras_pcp.prune_model(first.model, first.plan.graph, selected(first, levels))
                    share = keras_pcp.count_cost(small).macs / full
                    return {"levels": levels.tolist(), "macs": round(share, 4), **tuned(small, args, data, seed)}

                yield {"kind": "truth", "draw": args.draw, "set": kind, "number": number, "seed": seed}, row


def scores(args, data, first):
    """Yields the rows of scored sub-nets."""
    for seed in numbers(args.seeds):
        for stages in numbers(args.stages):
            for kind, between in sets(args):

                def row(stages=stages, seed=seed, between=between):
                    supernet, seconds = trained(args, data, stages, seed)
                    levels = drawn_subnets(first, between, args.subnets, args.draw)
                    found = scores_of(supernet, levels, data[1], args.score_samples)
                    full = accuracy(supernet.model, *data[2])
                    return {"seconds": seconds, "acc_full": full, "scores": found}

                name = {"kind": "scores", "draw": args.draw, "set": kind, "stages": stages, "seed": seed}
                yield name | {"sampling": args.sampling, "stage_inputs": args.stage_inputs}, row


def searches(args, data, first):
    """Yields the rows of searches, each tuned."""
    full = keras_pcp.count_cost(first.model).macs
    for seed in numbers(args.seeds):
        for stages in numbers(args.stages):
            for limit in map(float, args.limits.split(",")):

                def row(stages=stages, seed=seed, limit=limit):
                    supernet, _ = trained(args, data, stages, seed)
                    found = searched(supernet, args, data, "dynamic" if stages > 1 else "evolution", limit, seed)
                    small = keras_pcp.prune_model(first.model, first.plan.graph, found.selection)
                    return {
                        "macs": round(found.cost["macs"] / full, 4),
                        "error": found.error,
                        "evaluations": found.evaluations,
                        "search_seconds": found.seconds,
                        "widths": {name: int(mask.sum()) for name, mask in found.selection.keep.items()},
                        **tuned(small, args, data, seed),
                    }

                kind = {"kind": "search", "stages": stages, "sampling": args.sampling, "seed": seed, "limit": limit}
                yield kind | {"stage_inputs": args.stage_inputs}, row


def searched(supernet, args, data, method, limit, seed):
    """Searches by a trained super-net."""
    return supernet.search(
        max_macs=limit,
        validation_data=data[1],
        samples=args.search_samples,
        method=method,
        evaluations=args.evaluations,
        seed=seed,
        verbose=bool(args.verbose),
    )


def methods(args, data, first):
    """Yields rows that compare ways to search, each with nothing scored before."""
    stages, full = max(numbers(args.stages)), keras_pcp.count_cost(first.plan.graph).macs
    for seed in numbers(args.seeds):
        for limit in map(float, args.limits.split(",")):
            for method, most in (named.split() for named in args.methods.split(",")):

                def row(seed=seed, method=method, most=int(most), limit=limit):
                    supernet, _ = trained(args, data, stages, seed)
                    errors = StageErrors(supernet, data[1][0][: args.method_samples])
                    errors.scorer = Counted(errors.scorer)
                    started = time.perf_counter()
                    found = chosen(supernet, errors, method, most, limit * full)
                    seconds = {"seconds": time.perf_counter() - started, "scoring_seconds": errors.seconds}
                    seconds = {name: round(value, 2) for name, value in seconds.items()}
                    scored = errors.scorer.runs
                    return {"error": float(errors.of_all(found).sum()), "scored": scored, **seconds}

                name = {"kind": "method", "stages": stages, "method": method, "most": int(most), "limit": limit}
                yield name | {"seed": seed}, row


class Counted:
    """A scorer that counts how often it runs."""

    def __init__(self, scorer):
        self.scorer, self.runs = scorer, 0

    def error(self, stage, widths):
        self.runs += 1
        return self.scorer.error(stage, widths)


def chosen(supernet, errors, method, most, bound):
    """Returns the levels that a method finds for a limit of MACs."""
    if method == "dynamic":
        tables = StageTables(supernet, errors, ["macs"], most)
        front = tables.refine([bound])
        return tables.levels(tables.scored(), front.options[front.best([bound])])

    def error(levels):
        if method == "anew":
            errors.known.clear()
        return errors.whole(levels) if method == "whole" else float(errors.of_all(levels).sum())

    problem = Problem.of(supernet.plan.graph, Limits(max_macs=int(bound)))
    sizes = supernet.plan.levels.shape[::-1]
    return evolve(error, lambda levels: problem.holds(selected(supernet, levels)), *sizes, evaluations=most)[0]


def controls(args, data, first):
    """Yields rows of the given network with other widths, tuned alike; random ones once, with the first seed."""
    model, graph = first.model, first.plan.graph
    seeds, full = numbers(args.seeds), keras_pcp.count_cost(graph).macs
    scores = keras_pcp.score_channels(model, graph, "l1")
    for seed in seeds:
        for limit in map(float, args.limits.split(",")):
            uniform = keras_pcp.select_by_cost(graph, scores, max_macs=limit, scope="local")
            candidates = {"uniform": uniform}
            if seed == seeds[0]:
                levels = drawn_subnets(first, (limit - 0.01, limit), args.random)
                candidates |= {f"random {i}": selected(first, row) for i, row in enumerate(levels)}
            for name, selection in candidates.items():

                def row(selection=selection, seed=seed):
                    small = keras_pcp.prune_model(model, graph, selection)
                    share = keras_pcp.count_cost(small).macs / full
                    return {"macs": round(share, 4), **tuned(small, args, data, seed)}

                yield {"kind": name, "seed": seed, "limit": limit}, row
            for name, method in (("ProgressivePruning", "pcp"), ("AdaptivePruning", "acp")):
                yield (
                    {"kind": name, "seed": seed, "limit": limit},
                    lambda m=method, s=seed, t=limit: pruned(args, data, m, s, t),
                )


def pruned(args, data, method, seed, limit):
    """Prunes in a fit as long as the tuning of the others."""
    model = opened(args)
    full = keras_pcp.count_cost(model).macs
    options = {"max_macs": limit, "begin": 0.0, "end": 0.5}
    if method == "pcp":
        measuring = keras_pcp.Measuring(samples=256, seed=seed)
        callback = keras_pcp.ProgressivePruning(validation_data=data[1], measuring=measuring, **options)
    else:
        callback = keras_pcp.AdaptivePruning(**options)
    found = tuned(model, args, data, seed, [callback])
    return {"macs": round(keras_pcp.count_cost(model).macs / full, 4), **found}


PARTS = {"truth": truth, "scores": scores, "search": searches, "controls": controls, "methods": methods}


def numbers(text: str) -> list[int]:
    """Returns the integers in a text, separated by commas."""
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--stages", default="3,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--subnets", type=int, default=24)
    parser.add_argument("--draw", type=int, default=1, help="seed of the draw of sub-nets")
    parser.add_argument("--sets", default=";".join(SETS), help="sets of sub-nets to draw, separated by ';'")
    parser.add_argument("--sampling", default="prefix")
    parser.add_argument("--stage-inputs", default="full")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--score-samples", type=int, default=512)
    parser.add_argument("--search-samples", type=int, default=256)
    parser.add_argument("--method-samples", type=int, default=64)
    parser.add_argument(
        "--methods",
        default="dynamic 150,dynamic 50,dynamic 36,evolution 2000,anew 2000,whole 2000",
        help="and evaluations",
    )
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--tune-rate", type=float, default=0.02)
    parser.add_argument("--tune-epochs", type=int, default=1)
    parser.add_argument("--tune-images", type=int, default=5000)
    parser.add_argument("--limits", default="0.5,0.25")
    parser.add_argument("--random", type=int, default=16, help="random widths to compare a search with")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--folder", default=".", help="where trained super-nets are kept")
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    data = prepared(args)
    first = keras_pcp.StagewiseSupernet(opened(args), 1)  # for the draw; its order of channels is that of all
    same = {"suite": "supernet", "model": Path(args.model).stem, "data": args.data}
    command = {"command": "python " + " ".join(sys.argv)}
    for part in args.parts.split(","):
        for name, compute in PARTS[part](args, data, first):
            name = same | name | {"tune_epochs": args.tune_epochs}
            if not any(all(row.get(k) == v for k, v in name.items()) for row in read(args.out)):
                write(name | compute() | command, args.out)
                keras.backend.clear_session()


if __name__ == "__main__":
    main()

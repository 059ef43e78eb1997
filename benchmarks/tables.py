"""Fills the tables of README.md and docs/*.md from benchmarks/results/*.jsonl.

python benchmarks/tables.py           # rewrite the tables
python benchmarks/tables.py --check   # exit with 1 if a table is out of date
"""

import argparse
import re
import statistics
import sys
from pathlib import Path

import supernet_tables
from rows import read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str) -> list[dict]:
    return read(RESULTS / f"{name}.jsonl")


def table(header: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join(lines + ["| " + " | ".join(line) + " |" for line in body])


def digits() -> str:
    """The last recorded run of examples/prune_in_fit.py on the digits."""
    row = rows("digits")[-1]
    styles = {"test accuracy": ".4f", "latency, ms": ".3f", "LiteRT error": ".1e"}
    body = []
    for name, old in row["before"].items():
        new, style = row["after"][name], styles.get(name, ",.0f")
        ratio = "" if name == "LiteRT error" else f"{new / old:.3f}"
        body.append([name, format(old, style), format(new, style), ratio])
    return table(["digits, residual network", "before", "after", "ratio"], body)


def accuracy() -> str:
    """Mean and range over the seeds for each model, target, recovery, method and criterion."""
    return accuracy_of("accuracy")


def progressive() -> str:
    """The same for the networks on which progressive pruning is compared with everything else."""
    return accuracy_of("progressive")


def headline() -> str:
    """Test accuracy of trained networks after each way to prune them: means over at least three seeds."""
    found: dict[tuple, list[dict]] = {}
    for row in (r for r in rows("progressive") if not r["tag"]):
        found.setdefault((row["model"], row["method"], row["criterion"], row["target"]), []).append(row)
    columns = sorted({(model, -target) for (model, method, _, target), g in found.items() if method == "pcp" and g[2:]})
    body = []
    for name, method, criterion in HEADLINE:
        groups = [found.get((model, method, criterion, -target)) for model, target in columns]
        means = [f"{statistics.mean(r['acc'] for r in g):.3f}" if g and len(g) >= 3 else "" for g in groups]
        body += [[name, *means]] if any(means) else []
    unpruned = {row["model"]: row["acc_unpruned"] for row in rows("progressive")}
    body.append(["not pruned, and not trained further", *(f"{unpruned[model]:.3f}" for model, _ in columns)])
    return table(["", *(f"{NETWORKS[model]}, {-target:.0%} of the MACs" for model, target in columns)], body)


def defaults() -> str:
    """What the defaults of progressive pruning were chosen by."""
    found: dict[str, list[dict]] = {}
    for row in rows("defaults"):
        found.setdefault(row["tag"], []).append(row)
    body = []
    for tag, group in sorted(found.items()):
        mean = {k: statistics.mean(r[k] for r in group) for k in ("rounds", "attempt_seconds", "seconds")}
        cells = [", ".join(f"{r['val_acc']:.4f}" for r in group), f"{mean['rounds']:.0f}"]
        body.append([tag, *cells, f"{mean['attempt_seconds']:.0f}", f"{mean['seconds']:.0f}"])
    return table(["options", "validation accuracy, each run", "rounds", "attempts, s", "s"], body)


NETWORKS = {"resnet20_cifar10": "ResNet-20", "lite0_cifar10": "EfficientNet-Lite0"}
HEADLINE = (
    ("keras_pcp: progressive, `group_l1`", "pcp", "group_l1"),
    ("keras_pcp: progressive, `l1` (the default)", "pcp", "l1"),
    ("keras_pcp: best of ten random widths, `l1`", "random_widths", "l1"),
    ("keras_pcp: equal parts of all layers, `l1`", "uniform", "l1"),
    ("keras_pcp: lowest channels of the whole network, `l1`", "global", "l1"),
    ("Torch-Pruning, L1", "torch_pruning", "l1"),
    ("Torch-Pruning, Taylor, global", "torch_pruning", "taylor_global"),
)


def accuracy_of(name: str) -> str:
    found: dict[tuple, list[dict]] = {}
    unpruned: dict[str, float] = {}
    for row in rows(name):
        if row["acc_unpruned"] != unpruned.setdefault(row["model"], row["acc_unpruned"]):
            raise SystemExit(
                f"{name}.jsonl compares different networks under one name: {row['model']!r} has accuracies of "
                f"{unpruned[row['model']]} and {row['acc_unpruned']} unpruned; run all of its rows with one model file"
            )
        signal = "" if row["method"] == "torch_pruning" else row.get("signal", "metric")
        key = (row["model"], -row["target"], row["tag"], row["method"], row["criterion"], signal)
        found.setdefault(key, []).append(row)
    body = []
    for (model, target, tag, method, criterion, signal), group in sorted(found.items()):
        acc, mean = [r["acc"] for r in group], {k: statistics.mean(r[k] for r in group) for k in SHOWN}
        untrained = [r["acc_untrained"] for r in group if "acc_untrained" in r]
        body.append(
            [
                model,
                f"{-target}",
                tag,
                method,
                criterion,
                signal,
                f"{mean['macs']:.3f}",
                f"{mean['params']:.3f}",
                f"{statistics.mean(untrained):.4f}" if untrained else "",
                f"{mean['val_acc']:.4f}",
                f"{mean['acc']:.4f}",
                f"{min(acc):.4f} to {max(acc):.4f}",
                str(len(acc)),
                f"{mean['seconds']:.0f}",
                f"{mean['attempt_seconds']:.0f}",
            ]
        )
    header = [
        "model",
        "limit",
        "recovery",
        "method",
        "criterion",
        "signal",
        "MACs",
        "parameters",
        "untrained",
        "validation",
        "test",
    ]
    return table([*header, "range", "seeds", "s", "attempts, s"], body)


def adaptive() -> str:
    """Adaptive channel pruning, with parts of it off, and methods of the same kind: means and ranges over the seeds."""
    found: dict[tuple, list[dict]] = {}
    for row in rows("adaptive"):
        key = row["model"], -row["target"], row["method"], row["tag"], row["criterion"]
        found.setdefault(key, []).append(row)
    body = []
    for (model, target, method, tag, criterion), group in sorted(found.items()):
        acc, mean = [r["acc"] for r in group], {k: statistics.mean(r[k] for r in group) for k in ADAPTIVE}
        body.append(
            [model, f"{-target}", method, tag, criterion, f"{mean['macs']:.3f}", f"{mean['singular_value']:.2f}"]
            + [f"{mean[k]:.4f}" for k in ("first_steps", "val_acc", "acc")]
            + [f"{min(acc):.4f} to {max(acc):.4f}", str(len(acc)), f"{mean['seconds']:.0f}"]
        )
    header = ["model", "limit", "method", "options", "criterion", "MACs", "singular value", "first 100 steps"]
    return table([*header, "validation", "test", "range", "seeds", "s"], body)


def correction() -> str:
    """What the correction of a cut gives back before any training."""
    body = [
        [
            r["model"],
            r["data"],
            r["criterion"],
            f"{r['ratio']}",
            f"{r['error_plain']:.3f}",
            f"{r['error_corrected']:.3f}",
        ]
        + [f"{r[f'val_acc_{kind}']:.3f}" for kind in ("unpruned", "plain", "corrected")]
        + [f"{r[f'val_acc_{kind}_reestimated']:.3f}" for kind in ("plain", "corrected")]
        for r in rows("correction")
    ]
    header = ["model", "data", "criterion", "removed", "error, only removed", "error, corrected", "accuracy unpruned"]
    return table([*header, "removed", "corrected", "removed, statistics anew", "corrected, statistics anew"], body)


def dense_prediction() -> str:
    """A detector and a U-Net before pruning, unpruned for as long, and pruned: means and ranges over the seeds."""
    found: dict[tuple, list[dict]] = {}
    for row in rows("dense_prediction"):
        for name in ("before", "unpruned, as long", "pruned"):
            found.setdefault((row["task"], name), []).append(row[name])
    body = []
    for (task, name), group in found.items():
        (metric,) = {"mAP at 0.5", "mean IoU"} & set(group[0])
        score, mean = [r[metric] for r in group], {k: statistics.mean(r[k] for r in group) for k in group[0]}
        cells = [task, name, metric, f"{mean[metric]:.3f}", f"{min(score):.3f} to {max(score):.3f}", str(len(group))]
        cells += [f"{mean['MACs']:,.0f}", f"{mean['LiteRT file, bytes']:,.0f}"]
        body.append([*cells, f"{max(r['LiteRT error'] for r in group):.0e}"])
    return table(["task", "model", "metric", "mean", "range", "seeds", "MACs", "LiteRT bytes", "LiteRT error"], body)


def differences() -> str:
    """Test accuracy of progressive pruning minus that of each layer once, with the same criterion and seed."""
    found: dict[tuple, dict[str, float]] = {}
    for row in rows("accuracy"):
        key = (row["model"], row["target"], row["tag"], row.get("signal", "metric"), row["criterion"], row["seed"])
        found.setdefault(key, {})[row["method"]] = row["acc"]
    groups: dict[tuple, list[float]] = {}
    for (*key, _), by_method in sorted(found.items()):
        if {"pcp", "layerwise"} <= set(by_method):
            difference = by_method["pcp"] - by_method["layerwise"]
            for criterion in (key[-1], "all"):
                groups.setdefault((*key[:-1], criterion), []).append(difference)
    body = [
        [
            model,
            f"{target}",
            tag,
            signal,
            criterion,
            f"{statistics.mean(d):+.4f}",
            f"{statistics.stdev(d) / len(d) ** 0.5:.4f}" if len(d) > 1 else "",
            f"{min(d):+.4f} to {max(d):+.4f}",
            str(len(d)),
        ]
        for (model, target, tag, signal, criterion), d in sorted(groups.items(), key=lambda item: _all_last(item[0]))
    ]
    header = [
        "model",
        "limit",
        "recovery",
        "signal",
        "criterion",
        "mean difference",
        "standard error",
        "range",
        "pairs",
    ]
    return table(header, body)


def _all_last(key: tuple) -> tuple:
    *others, criterion = key
    return *others, criterion == "all", criterion


SHOWN = ("macs", "params", "val_acc", "acc", "seconds", "attempt_seconds")
ADAPTIVE = ("macs", "singular_value", "first_steps", "val_acc", "acc", "seconds")


def attempts() -> str:
    """Fast attempts against exact ones."""
    body = [
        [
            r["model"],
            str(r["groups"]),
            str(r["samples"]),
            r.get("signal", "metric"),
            f"{r['confidence']:g}",
            f"{r['same']} of {r['rounds']}",
            f"{r['exact_passes']:.1f}",
            f"{r['fast_passes']:.1f}",
            f"{r['fast_passes'] / r['exact_passes']:.2f}",
            f"{r['exact_seconds']:.0f}",
            f"{r['fast_seconds']:.0f}",
            f"{r['fast_seconds'] / r['exact_seconds']:.2f}",
        ]
        for r in rows("attempts")
        if r["suite"] == "attempts"
    ]
    header = ["model", "groups", "samples", "signal", "confidence", "same groups"]
    return table(
        [*header, "exact, passes per round", "fast, passes per round", "ratio", "exact, s", "fast, s", "ratio"], body
    )


def growth() -> str:
    """Passes of the first rounds of the fast way, for networks with few and many groups."""
    body = [
        [
            r["model"],
            str(r["groups"]),
            str(r["samples"]),
            r["signal"],
            ", ".join(f"{p:.1f}" for p in r["passes"]),
            f"{statistics.mean(r['passes']):.1f}",
            f"{r['seconds']:.0f}",
        ]
        for r in rows("attempts")
        if r["suite"] == "growth"
    ]
    return table(["model", "groups", "samples", "signal", "passes of each round", "mean", "s"], body)


def memory() -> str:
    """Peak memory of fit with pruning over that of fit without."""
    body = [
        [
            r["model"],
            str(r["samples"]),
            "yes" if r["refit"] else "no",
            str(r["plain_mib"]),
            str(r["pruning_mib"]),
            f"{r['ratio']:.2f}",
        ]
        for r in rows("attempts")
        if r["suite"] == "memory"
    ]
    return table(["model", "samples", "refit", "fit, MiB", "fit with pruning, MiB", "ratio"], body)


def adaptation() -> str:
    """Mean and range over the seeds of the accuracy on the target, before pruning and after."""
    found: dict[tuple, list[dict]] = {}
    for row in rows("adaptation"):
        how = (row["epochs"], row["prune_epochs"], row["threshold"], row["criterion"])  # never averaged together
        key = (row["source"], row["target"], -row["macs_limit"], ADAPTATION.index(row["method"]), row["rate"], how)
        found.setdefault(key, []).append(row)
    body = []
    for (source, target, limit, method, rate, _), group in sorted(found.items()):
        acc = [r["target_acc"] for r in group]
        means = {k: statistics.mean(r[k] for r in group) for k in ("macs", "source_acc", "proxy_a_distance")}
        body.append(
            [
                f"{source} to {target}",
                f"{-limit:g}",
                ADAPTATION[method],
                f"{rate:g}",
                f"{means['macs']:.3f}",
                f"{statistics.mean(acc):.4f}",
                f"{min(acc):.4f} to {max(acc):.4f}",
                f"{means['source_acc']:.4f}",
                f"{means['proxy_a_distance']:.2f}",
                str(len(acc)),
            ]
        )
    header = [
        "domains",
        "limit",
        "method",
        "rate",
        "MACs",
        "target test",
        "range",
        "source test",
        "A-distance",
        "seeds",
    ]
    return table(header, body)


ADAPTATION = [
    "source_only",
    "mmd",
    "dann",
    "dann_pseudo",
    "no_pseudo",
    "source",
    "pseudo",
    "oracle",
    "random_widths",
    "uniform",
    "adapt_after",
]


def fit_time() -> str:
    """One line a repeat."""
    body = [
        [
            r["model"],
            r.get("method", "progressive"),
            str(r.get("multiple_of", 1)),
            ("refit, " if r.get("refit") else "") + r.get("monitor", "metric") if "adaptive" != r.get("method") else "",
            "steps in turn" if r.get("in_turn") else "one fit after the other",
            str(r["epochs"]),
            f"{r['plain_seconds']:.0f}",
            f"{r['pruning_seconds']:.0f}",
            f"{r['ratio']:.3f}",
            f"{r['attempts_seconds']:.1f}",
            f"{r['surgery_seconds']:.1f}",
            f"{r['retracing_seconds']:.1f}",
            str(r["rounds"]),
            str(r["shrinks"]),
            number(r.get("peak_ratio"), ".3f"),
        ]
        for r in rows("fit_time")
    ]
    header = [
        "model",
        "method",
        "multiple of",
        "attempts by",
        "timed",
        "epochs",
        "fit, s",
        "fit with pruning, s",
        "ratio",
    ]
    header += ["attempts, s", "surgery, s", "retracing, s", "rounds", "shrinks", "peak memory, ratio"]
    return table(header, body)


def step_time() -> str:
    """The median training step of pruned networks and super-nets against that of the unpruned network."""
    body = [
        [
            r["model"],
            str(r["steps"]),
            r["network"],
            number(r["macs"], ".3f"),
            f"{r['seconds']:.3f}",
            f"{r['ratio']:.2f}",
        ]
        for r in rows("step_time")
    ]
    return table(["model", "steps timed", "network, or widths of its groups", "MACs", "step, s", "ratio"], body)


def phone() -> str:
    """The LiteRT files of pruned and unpruned networks."""
    body = [
        [
            r["model"],
            r["format"],
            r["network"],
            f"{r['macs']:.3f}",
            f"{r['bytes']:,}",
            f"{r['acc_keras']:.4f}",
            f"{r['acc']:.4f}",
            f"{r['ms']:.2f}",
            f"{r['ms_90']:.2f}",
            f"{r['speedup']:.2f}",
        ]
        for r in rows("phone")
    ]
    header = ["model", "format", "network", "MACs", "bytes", "accuracy in Keras", "accuracy of the file"]
    return table([*header, "median, ms", "90th percentile, ms", "times as fast"], body)


def command() -> str:
    """What `keras-pcp` says to help, typos and bad input."""
    body = []
    for row in rows("command"):
        says = f"`{row['says'][0]}`" if row["says"] else ""
        figures = [str(row["code"]), f"{row['seconds']:.1f}", str(row["foreign"])]
        body.append([row["case"], f"`{row['arguments']}`", *figures, says])
    return table(["case", "arguments", "exit code", "s", "lines of others", "says"], body)


def silence() -> str:
    """How long a user sees nothing."""
    body = [
        [r["model"], f"{r['seconds']:.0f}", f"{r['first_output']:.1f}", ", ".join(f"{s:.1f}" for s, _ in r["silences"])]
        for r in rows("silence")
    ]
    return table(["model", "fit, s", "until the first output, s", "longest silences, s"], body)


def supernet_scores() -> str:
    """How well scores of sub-nets foretell their accuracy."""
    header = ["draw", "MACs", "sub-nets", "super-net", "score", "tau, mean", "range, or 95% interval", "super-nets"]
    return table(header, supernet_tables.taus(rows("supernet")))


def supernet_searches() -> str:
    """What searches by super-nets find, beside other widths: accuracy on test images after the same tuning."""
    header = ["model", "limit", "widths by", "MACs", "accuracy, mean (random: median)", "range", "runs", "search, s"]
    return table(header, supernet_tables.searches(rows("supernet")))


def supernet_methods() -> str:
    """Dynamic programming and evolution on the scores of the same super-net."""
    header = [
        "super-net",
        "limit",
        "search",
        "evaluations, at most",
        "stages scored",
        "error found",
        "s",
        "of these scoring",
    ]
    return table(header, supernet_tables.methods(rows("supernet")))


def fit_applications() -> str:
    """Adaptive pruning of every model of keras.applications in a `fit` of three steps: one line a model."""
    body = [
        [
            r["model"],
            str(r["groups"]),
            f"{r['macs']:.3f}",
            f"{r['params']:.3f}",
            str(r["cuts"]),
            number(r["error_plain"], ".3f"),
            number(r["error_corrected"], ".3f"),
            "yes" if r["reached"] else "no",
            "yes" if r["finite"] else "no",
        ]
        for r in rows("fit_applications")
    ]
    header = ["model", "groups", "MACs", "parameters", "cuts", "error, only removed", "error, corrected"]
    return table([*header, "limit met", "finite"], body)


# Rows keep the name that an operation had when they were recorded; tables show its present name.
RENAMED = {"lines of recalibrate": "lines of reestimate_batch_norm"}


def robustness() -> str:
    """The results of the long checks of tests/, in the order in which they were run."""
    body = []
    for row in rows("robustness"):
        what = {k: v for k, v in row.items() if k not in ("suite", "of", "count", "start", "seconds", "commit")}
        outcome = ", ".join(f"{k} {len(v) if isinstance(v, list) else format(v, ',')}" for k, v in what.items())
        body.append(
            [
                f"`{row['suite']}`" + (f", {RENAMED.get(row['of'], row['of'])}" if "of" in row else ""),
                f"{row['count']:,}",
                outcome,
                row["commit"],
            ]
        )
    return table(["check", "cases", "outcome", "commit"], body)


def number(value: float | None, style: str, missing: str = "") -> str:
    """Formats a number; JSON has null and NaN where there is none."""
    return missing if value is None or value != value else format(value, style)


def applications() -> str:
    """Every model of keras.applications: what was found, and the times of speed.jsonl."""
    times = {r["model"]: r for r in rows("speed")}
    body = []
    for row in (r for r in rows("coverage") if r["family"] == "applications"):
        seconds = times.get(row["model"], {})
        worst = max(row[f"error{k}"] for k in ("", "_avg", "_max", "_None"))
        copies = seconds["prune_model_s"] / seconds["clone_s"] if seconds else None
        body.append(
            [
                row["model"],
                str(row["layers"]),
                f"{row['groups']} / {row['exact_groups']}",
                f"{row['prunable']:.1%}",
                f"{row['least_macs']:.2%}",
                f"{worst:.0e}",
                number(row["planted_error"], ".0e", "-"),
                number(row["litert_error"], ".0e", "-"),
                number(seconds.get("graph_s"), ".2f"),
                number(seconds.get("shrink_s"), ".2f"),
                number(copies, ".2f"),
            ]
        )
    header = ["model", "layers", "groups / exact", "prunable", "least MACs", "cut vs masked", "planted", "LiteRT"]
    return table([*header, "graph, s", "shrink, s", "copy / clone"], body)


def kerashub() -> str:
    """Small KerasHub backbones: how many blocks were opened, what was found, and what stays as it is and why."""
    body = []
    for row in (r for r in rows("coverage") if r["family"] == "kerashub"):
        if "failure" in row:
            body.append([row["model"], *[""] * 7, row["failure"].partition(": ")[2].partition(";")[0][:160]])
            continue
        reasons = [text for text, *_ in row["unknown"]]
        body.append(
            [
                row["model"],
                str(row["blocks"]),
                f"{row['groups']} / {row['exact_groups']}",
                f"{row['prunable']:.1%}",
                number(row["macs"], ".2f", "-"),
                number(row["least_macs"], ".2%", "-"),
                number(row["error"], ".0e", "-"),
                number(row["litert_error"], ".0e", "-"),
                "; ".join(reasons)[:160],
            ]
        )
    header = ["backbone", "blocks opened", "groups / exact", "prunable", "MACs at half width", "least MACs"]
    return table([*header, "cut vs masked", "LiteRT", "stays as it is"], body)


def coverage_summary() -> str:
    """How many models passed each check."""
    apps = [r for r in rows("coverage") if r["family"] == "applications"]
    all_hub = [r for r in rows("coverage") if r["family"] == "kerashub"]
    hub = [r for r in all_hub if "failure" not in r]
    graphs = rows("random_graphs")
    checks = {
        "keras.applications: cut model equals masked model to 1e-5, in four variants": [
            max(r[f"error{k}"] for k in ("", "_avg", "_max", "_None")) <= 1e-5 for r in apps
        ],
        "keras.applications: predicted cost equals counted cost": [r["cost_equal"] for r in apps],
        "keras.applications: saved and reloaded in a process without keras_pcp, outputs equal": [
            r["reload_error"] == 0 for r in apps
        ],
        "keras.applications: exported to LiteRT, error at most 1e-4": [
            (r["litert_error"] if r["litert_error"] is not None else 1) <= 1e-4 for r in apps
        ],
        "keras.applications: keeps training after a shrink in place": [r["trains_on"] for r in apps],
        "keras.applications: planted dead channels found and cut, outputs equal to 1e-5": [
            r["planted_error"] <= 1e-5 for r in apps
        ],
        "KerasHub: pruned and loaded again (KerasHub itself cannot rebuild the layers of the others)": [
            "failure" not in r for r in all_hub
        ],
        "KerasHub: opened model equals the original to 1e-5": [r["inline_error"] <= 1e-5 for r in hub],
        "KerasHub: cut model equals masked model to 1e-5": [
            r["error"] <= 1e-5 for r in hub if r["error"] == r["error"]
        ],
        "KerasHub: planted dead channels found and cut, outputs equal to 1e-5": [
            r["planted_error"] <= 1e-5 for r in hub if r["planted_error"] is not None
        ],
        "KerasHub: half the widths leave at most half of the MACs": [
            r["macs"] <= 0.5 for r in hub if r["macs"] is not None and r["macs"] == r["macs"]
        ],
    }
    body = [[name, f"{sum(found)} of {len(found)}"] for name, found in checks.items()]
    body += [["random graphs: all equations", f"{r['passed']} of {r['count']}"] for r in graphs]
    return table(["check", "passed"], body)


def torch_pruning() -> str:
    """Graph and cut, here and in Torch-Pruning, medians over the turns."""
    found: dict[str, list[dict]] = {}
    for row in rows("torch_pruning"):
        theirs, shrunk = row["torch_graph_s"] + row["torch_cut_s"], row["graph_s"] + row["shrink_s"]
        found.setdefault(row["model"], []).append(row | {"ratio": theirs / shrunk, "all": theirs / row["total_s"]})
    keys = ("graph_s", "shrink_s", "select_s", "torch_graph_s", "torch_cut_s", "ratio", "all")
    styles = (".2f", ".2f", ".2f", ".2f", ".2f", ".1f", ".1f")
    body = []
    for model, turns in found.items():
        medians = [statistics.median(r[k] for r in turns) for k in keys]
        body.append([model, *(format(v, f) for v, f in zip(medians, styles, strict=True)), str(len(turns))])
    header = ["model", "graph, s", "shrink, s", "scores, s", "Torch-Pruning graph, s", "Torch-Pruning cut, s", "ratio"]
    return table([*header, "ratio with scores", "turns"], body)


def structure() -> str:
    """Each folder of the package, before and after it was laid out as stages."""
    body = []
    for row in sorted(rows("structure"), key=lambda row: row["label"] != "before"):
        name = "(none)" if row["folder"] == "." else f"`{row['folder']}`"
        leads = [f"{'(none)' if folder == '.' else folder} {count}" for folder, count in row["imports"].items()]
        size = f"`{row['class']}`, {row['attributes']} and {row['methods']}" if row["class"] else ""
        body.append([row["label"], name, str(row["modules"]), f"{row['lines']:,}", size, ", ".join(leads)])
    header = ["", "folder", "modules", "lines of code", "biggest class, attributes and methods"]
    return table([*header, "imports from other folders"], body)


MAKERS = (
    digits,
    robustness,
    accuracy,
    headline,
    progressive,
    defaults,
    adaptive,
    correction,
    dense_prediction,
    differences,
    attempts,
    growth,
    memory,
    adaptation,
    fit_time,
    phone,
    silence,
    command,
    step_time,
    fit_applications,
    applications,
    kerashub,
    coverage_summary,
    torch_pruning,
    structure,
    supernet_scores,
    supernet_searches,
    supernet_methods,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    makers = {f.__name__: f for f in MAKERS}
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text()

        def fill(match: re.Match) -> str:
            return f"<!-- table: {match[1]} -->\n{makers[match[1]]()}\n<!-- end -->"

        new = re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.S)
        if new != text:
            stale.append(path.name)
            if not args.check:
                path.write_text(new)
    print("out of date: " + ", ".join(stale) if stale else "tables are up to date")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())

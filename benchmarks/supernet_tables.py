"""Tables of supernet.jsonl: how well scores foretell accuracy, and what the searches find."""

import statistics

import numpy as np

SCORES = ("stages", "stages, equal weights", "whole", "loss", "error rate")
STAGEWISE = 3, "stages"  # what a search by a stage-wise super-net goes by
DRAWS = 2000  # of the bootstrap


def taus(rows: list[dict]) -> list[list[str]]:
    """Returns one line for each set of sub-nets and score, and their differences.

    Kendall's tau (b) is between the score and the mean accuracy over the seeds of the tuning; mean and range over the seeds
    of the super-net. The interval of a difference holds 95% of 2,000 draws of sub-nets with replacement.
    """
    body = []
    scored = [r for r in rows if r["kind"] == "scores"]
    for kind in dict.fromkeys(r["set"] for r in rows if r["kind"] == "truth"):
        truth = [r for r in rows if r["kind"] == "truth" and r["set"] == kind]
        accuracy, macs = mean_of("acc", truth), mean_of("macs", truth)
        values = {}
        for stages in sorted({r["stages"] for r in scored}, reverse=True):
            for name in SCORES:
                if stages > 1 or not name.startswith("stages"):  # with one stage, these are the same as "whole"
                    values[stages, name] = [r["scores"][name][kind] for r in scored if r["stages"] == stages]
        for (stages, name), each in values.items():
            tau = [kendall(v, accuracy) for v in each]
            body.append(
                [kind, name_of(stages), name, f"{np.mean(tau):.3f}", f"{min(tau):.3f} to {max(tau):.3f}", str(len(tau))]
            )
        body.append([kind, "", "MACs alone", f"{kendall(-macs, accuracy):.3f}", "", ""])
        first = values[STAGEWISE]
        for key, other in values.items():
            if key[0] == 1:
                low, high = interval(first, other, accuracy)
                mean = np.mean([kendall(v, accuracy) for v in first]) - np.mean([kendall(v, accuracy) for v in other])
                body.append(
                    [
                        kind,
                        "difference",
                        f"{STAGEWISE[1]} - {key[1]}",
                        f"{mean:+.3f}",
                        f"{low:+.3f} to {high:+.3f}",
                        "",
                    ]
                )
    return body


def mean_of(what: str, truth: list[dict]) -> np.ndarray:
    """Returns a value of each sub-net, as a mean over seeds."""
    numbers = sorted({r["number"] for r in truth})
    return np.array([statistics.mean(r[what] for r in truth if r["number"] == n) for n in numbers])


def kendall(score: list[float], accuracy: np.ndarray, chosen: np.ndarray | None = None) -> float:
    """Returns Kendall's tau-b of all sub-nets or those chosen; positive if a low score means a high accuracy."""
    chosen = np.arange(len(accuracy)) if chosen is None else chosen
    a, b = (np.sign(np.subtract.outer(v, v)) for v in (np.negative(score)[chosen], accuracy[chosen]))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def interval(first: list[list[float]], second: list[list[float]], accuracy: np.ndarray) -> tuple[float, float]:
    """Returns the bootstrap interval of the mean tau of one score minus that of another."""
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(accuracy), len(accuracy))
        means = [np.mean([kendall(v, accuracy, drawn) for v in each]) for each in (first, second)]
        found.append(means[0] - means[1])
    return tuple(np.percentile(found, (2.5, 97.5)))


def name_of(stages: int) -> str:
    """Returns how a super-net is called in the tables."""
    return "plain" if stages == 1 else f"{stages} stages"


def searches(rows: list[dict]) -> list[list[str]]:
    """Returns one line for each limit and method: means and ranges over the seeds."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        if "limit" in row and "acc" in row:
            name = row["kind"]
            if "stages" in row:
                name = f"super-net, {name_of(row['stages'])}" + name.removeprefix("search")
            found.setdefault((row["model"], -row["limit"], name.rstrip("0123456789 ")), []).append(row)
    body = []
    for (model, limit, name), group in sorted(found.items()):
        acc = [r["acc"] for r in group]
        middle = f"{statistics.median(acc):.4f}" if name == "random" else f"{statistics.mean(acc):.4f}"
        seconds = [sum(r["search_seconds"].values()) for r in group if "search_seconds" in r]
        macs = statistics.mean(r["macs"] for r in group)
        body.append(
            [model, f"{-limit}", name, f"{macs:.3f}", middle, f"{min(acc):.4f} to {max(acc):.4f}", str(len(acc))]
        )
        body[-1].append(f"{max(seconds):.0f}" if seconds else "")
    return body


def methods(rows: list[dict]) -> list[list[str]]:
    """Returns one line for each way to search the same super-net."""
    names = {"dynamic": "dynamic programming", "evolution": "evolution", "whole": "evolution, whole sub-nets"}
    found = sorted((r for r in rows if r["kind"] == "method"), key=lambda r: -r["limit"])
    return [
        [
            str(r["limit"]),
            names[r["method"]],
            f"{r['most']:,}",
            f"{r['scored']:,}",
            f"{r['error']:.4f}",
            f"{r['seconds']:.0f}",
            f"{r['scoring_seconds']:.0f}",
        ]
        for r in found
    ]

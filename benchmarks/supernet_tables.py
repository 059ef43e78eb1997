"""Tables of supernet.jsonl: how well scores foretell accuracy, and what the searches find."""

import statistics

import numpy as np

SCORES = ("stages", "whole", "loss", "error rate")
# A score by the super-net with stages, and one by the plain super-net.
COMPARED = (*((name, name) for name in SCORES[1:]), ("stages", "error rate"))
PLAIN = "plain"
CHOSEN_ON = 1  # the draw of sub-nets that was known when own inputs were chosen
DRAWS = 2000  # of the bootstrap


def taus(rows: list[dict]) -> list[list[str]]:
    """Returns one line for each draw and set of sub-nets and each score, and their differences.

    Kendall's tau (b) is between the score and the mean accuracy over the seeds of the tuning; mean and range over the seeds
    of the super-net. The interval of a difference holds 95% of 2,000 draws of sub-nets with replacement. A difference over
    several draws is the mean of theirs: of all, and of those after the first, on which own inputs were chosen.
    """
    body, known = [], {}
    truth = [r for r in rows if r["kind"] == "truth"]
    for draw, kind in sorted({(r["draw"], r["set"]) for r in truth}):
        chosen = [r for r in truth if (r["draw"], r["set"]) == (draw, kind)]
        scored = [r for r in rows if r["kind"] == "scores" and (r["draw"], r["set"]) == (draw, kind)]
        different = first_of_each([r["levels"] for r in sorted(chosen, key=lambda r: (r["seed"], r["number"]))])
        accuracy, macs = mean_of("acc", chosen)[different], mean_of("macs", chosen)[different]
        values = _values(scored, different)
        start = [str(draw), kind, str(len(different))]
        for supernet, scores in values.items():
            for name, each in scores.items():
                tau = [kendall(v, accuracy) for v in each]
                spread = f"{min(tau):.3f} to {max(tau):.3f}"
                body.append([*start, supernet, name, f"{np.mean(tau):.3f}", spread, str(len(tau))])
        body.append([*start, "", "MACs alone", f"{kendall(-macs, accuracy):.3f}", "", ""])
        body += _differences(start, [(values, accuracy)])
        known.setdefault(kind, []).append((draw, values, accuracy))
    for kind, all_draws in known.items():
        later = [d for d in all_draws if d[0] > CHOSEN_ON]
        for draws in [all_draws, later] if len(later) < len(all_draws) else [later]:
            names = ", ".join(str(draw) for draw, *_ in draws)
            start = [names, kind, str(sum(len(accuracy) for *_, accuracy in draws))]
            body += _differences(start, [pair for _, *pair in draws])
    return body


def _values(scored: list[dict], different: np.ndarray) -> dict[str, dict[str, list]]:
    """Returns {super-net: {score: its values for the sub-nets, once for each seed}}."""
    values: dict[str, dict[str, list]] = {}
    for row in sorted(scored, key=lambda r: (-r["stages"], r["stage_inputs"])):
        for name in SCORES:
            if row["stages"] > 1 or name != "stages":  # with one stage, the same as "whole"
                score = np.array(row["scores"][name])[different]
                values.setdefault(name_of(row), {}).setdefault(name, []).append(score)
    return values


def _differences(start: list[str], draws: list) -> list[list[str]]:
    """Returns one line for each super-net with stages and each pair of scores, over some draws of sub-nets."""
    body = []
    for supernet in [name for name in draws[0][0] if name != PLAIN and all(name in values for values, _ in draws)]:
        for first, second in COMPARED:
            pairs = [((values[supernet][first], values[PLAIN][second]), accuracy) for values, accuracy in draws]
            means = [[np.mean([kendall(v, a) for v in each]) for each in pair] for pair, a in pairs]
            low, high = interval(pairs)
            name = first if first == second else f"{first} - {second}"
            difference = f"{np.mean([one - other for one, other in means]):+.3f}"
            body.append([*start, f"{supernet} - {PLAIN}", name, difference, f"{low:+.3f} to {high:+.3f}", ""])
    return body


def first_of_each(levels: list[list[int]]) -> np.ndarray:
    """Returns the numbers of the different sub-nets."""
    return np.sort(np.unique(np.array(levels), axis=0, return_index=True)[1])


def mean_of(what: str, truth: list[dict]) -> np.ndarray:
    """Returns a value of each sub-net, as a mean over seeds."""
    numbers = sorted({r["number"] for r in truth})
    return np.array([statistics.mean(r[what] for r in truth if r["number"] == n) for n in numbers])


def kendall(score: np.ndarray, accuracy: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Returns Kendall's tau-b, positive if a low score means a high accuracy.

    Args:
        score, accuracy: of the sub-nets, (sub-nets,).
        counts: how often each sub-net counts, (..., sub-nets); by default once.
    """
    counts = np.ones(len(accuracy)) if counts is None else counts
    a, b = (np.sign(np.subtract.outer(v, v)) for v in (np.negative(score), accuracy))
    same, first, second = (((counts @ m) * counts).sum(-1) for m in (a * b, a * a, b * b))
    return same / np.sqrt(first * second)


def interval(pairs: list) -> tuple[float, float]:
    """Returns the bootstrap interval of the mean tau of one score minus that of another, as a mean over draws of sub-nets.

    Args:
        pairs: for each draw, the values of both scores, each as a list over seeds, and the accuracies.
    """
    rng, found = np.random.default_rng(0), []
    for pair, accuracy in pairs:
        size = len(accuracy)
        counts = rng.multinomial(size, np.full(size, 1 / size), DRAWS).astype(float)
        one, other = (np.mean([kendall(v, accuracy, counts) for v in each], axis=0) for each in pair)
        found.append(one - other)
    return tuple(np.percentile(np.mean(found, axis=0), (2.5, 97.5)))


def name_of(row: dict) -> str:
    """Returns how the super-net of a row is called in the tables."""
    own = ", own inputs" if row["stage_inputs"] == "own" else ""
    return PLAIN if row["stages"] == 1 else f"{row['stages']} stages{own}"


def searches(rows: list[dict]) -> list[list[str]]:
    """Returns one line for each limit and method: means and ranges over the seeds."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        if "limit" in row and "acc" in row:
            name = row["kind"]
            if "stages" in row:
                name = f"super-net, {name_of(row)}" + name.removeprefix("search")
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
    names = {
        "dynamic": "dynamic programming",
        "evolution": "evolution, no option twice",
        "anew": "evolution",
        "whole": "evolution, whole sub-nets",
    }
    found = sorted((r for r in rows if r["kind"] == "method"), key=lambda r: (r["seed"], -r["limit"]))
    return [
        [
            str(r["seed"] + 1),
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

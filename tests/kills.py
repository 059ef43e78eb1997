"""Kills the training and the search of a super-net at random times; each must go on, and end as if never killed.

    python tests/kills.py --count 30

A child process trains with `keras.callbacks.BackupAndRestore`, searches with a checkpoint, and writes what it found. It is
killed up to three times before it may end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np

IN_A_ROW = 3


def work(folder: Path) -> None:
    """What the child does."""
    import keras
    import tensorflow as tf
    from supernet.test_model import compiled, data, staged

    import keras_pcp

    tf.config.experimental.enable_op_determinism()  # rounding alone may change which sub-nets are scored
    supernet = compiled(keras_pcp.StagewiseSupernet(staged(), 3, ratios=(0.25, 0.5, 0.75)))
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(4)
    backup = keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
    (folder / "started").touch()
    supernet.fit(batches, epochs=12, verbose=0, callbacks=[backup])
    options = {"max_macs": 0.5, "validation_data": data(), "evaluations": 64, "verbose": False}
    found = supernet.search(**options, checkpoint=folder / "search.json")
    kept = {name: mask.tolist() for name, mask in found.selection.keep.items()}
    sums = [float(np.abs(w).sum()) for w in supernet.get_weights()]
    unfinished = folder / "result.tmp"
    unfinished.write_text(json.dumps({"error": found.error, "kept": kept, "weights": sums}))
    unfinished.rename(folder / "result.json")


def run(folder: Path, seconds: float | None = None) -> str:
    """Lets a child work, for some seconds if they are given; returns what it said if it failed."""
    (folder / "started").unlink(missing_ok=True)
    child = subprocess.Popen(
        [sys.executable, __file__, "--child", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if seconds is not None:
        while child.poll() is None and not (folder / "started").exists():
            time.sleep(0.02)
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
    said = child.communicate()[1]
    return said[-2000:] if child.returncode not in (0, -signal.SIGKILL) else ""


def same(first: dict, second: dict) -> bool:
    """Whether two results are the same up to rounding."""
    numbers = [*zip(first["weights"], second["weights"], strict=True), (first["error"], second["error"])]
    return first["kept"] == second["kept"] and all(abs(a - b) <= 1e-4 * (1 + abs(a)) for a, b in numbers)


def killed(count: int, seed: int = 0) -> dict:
    """Kills children `count` times; returns how many ended afterwards, and how many of them not as they should."""
    rng, kills, ended, failed = np.random.default_rng(seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        (whole := Path(place) / "whole").mkdir()
        began = time.perf_counter()
        if said := run(whole):
            raise RuntimeError(said)
        longest = (time.perf_counter() - began) * 0.7
        expected = json.loads((whole / "result.json").read_text())
        while kills < count:
            (folder := Path(place) / str(kills)).mkdir()
            for _ in range(min(IN_A_ROW, count - kills)):
                run(folder, rng.uniform(0, longest))
                kills += 1
            said, result = run(folder), folder / "result.json"
            if said or not same(expected, json.loads(result.read_text())):
                print(said or f"another result after {kills} kills", file=sys.stderr)
                failed += 1
            ended += 1
    return {"suite": "kills", "count": count, "ended": ended, "failed": failed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="number of kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    args = parser.parse_args()
    if args.child:
        work(args.child)
        return 0
    found = killed(args.count, args.seed)
    print(json.dumps(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

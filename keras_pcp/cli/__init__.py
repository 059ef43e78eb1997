"""The command `keras-pcp`: inspect, prune, export and bench a saved model.

keras-pcp inspect model.keras
keras-pcp prune model.keras small.keras --max-macs 0.5 --data photos/ --tune-epochs 3
keras-pcp export small.keras small.tflite --quantization float16
keras-pcp bench small.tflite

Results go to stdout. An error is one line on stderr and exit code 2; an interrupt is exit code 130. The log lines of
TensorFlow are hidden unless TF_CPP_MIN_LOG_LEVEL is set in the environment.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_pcp.cli.files import existing, load, samples, writable
from keras_pcp.cli.table import compared
from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.support.files import replacing
from keras_pcp.version import __version__

# Listed here so that `--help` does not import Keras. Criteria that need data are for `keras_pcp.score_channels` only.
_CRITERIA = (
    "l2",
    "group_l1",
    "bn_scale",
    "dead_probability",
    "fpgm",
    "least_distance",
    "cosine",
    "orthogonality",
    "reciprocal",
    "random",
)
_EXAMPLES = {
    "inspect": "inspect mine.keras",
    "prune": "prune mine.keras small.keras --max-macs 0.5 --data photos/ --tflite small.tflite --quantization int8",
    "export": "export small.keras small.tflite --quantization float16",
    "bench": "bench before.tflite small.tflite --threads 4",
}
_LIMITS = ("macs", "params", "bytes")
_WITH_DATA = (
    "method",
    "tune_epochs",
    "learning_rate",
    "batch_size",
    "refit",
    "flip",
    "pixels",
    "data_dir",
    "seed",
    "tflite",
    "quantization",
    "quiet",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 after an error (one line on stderr), or 130 after an interrupt.

    Args:
        argv: arguments without the name of the program; None means those of the process.

    Example:
        >>> import keras, tempfile
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 3, name="conv")(x))
        >>> path = tempfile.mkdtemp() + "/tiny.keras"
        >>> keras.Model(x, keras.layers.Dense(10)(y), name="tiny").save(path)
        >>> main(["prune", path, path.replace("tiny", "small"), "--max-macs", "0.5"])  # doctest: +ELLIPSIS
                            before           after   ratio
        MACs                15,712           7,856   0.500
        parameters             618             314   0.508
        wrote .../small.keras; its accuracy is low until it is trained: add --data, or fine-tune it yourself
        0
    """
    args = _parser().parse_args(argv)
    try:
        with _without_native_logs():
            args.run(args)
        sys.stdout.flush()
    except PruningError as error:
        print(f"keras-pcp: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        _give_up_stdout()
    except OSError as error:  # for example a full disk
        _give_up_stdout()
        print(f"keras-pcp: error: cannot write the output: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("keras-pcp: interrupted", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _without_native_logs() -> Iterator[None]:
    """Hides what TensorFlow logs past Python, unless TF_CPP_MIN_LOG_LEVEL is set. Python itself still writes to stderr."""
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    stderr, kept, nowhere = sys.stderr, os.dup(2), os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is no file, as in a notebook
        if stderr.fileno() == 2:
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        sys.stderr = stderr
        os.close(kept)
        os.close(nowhere)


def _give_up_stdout() -> None:
    """Redirects stdout to nowhere: Python flushes it again at exit, and that must not fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def inspect(args: argparse.Namespace) -> None:
    """Prints what can be pruned in a model; with `--json`, prints only `Inspection.to_json()`."""
    model = load(args.model, args.custom_objects)
    from keras_pcp.graph.channel_graph import inspect_graph

    inspection = inspect_graph(_graph(args, model))
    print(json.dumps(inspection.to_json(), indent=1, allow_nan=False) if args.json else inspection)


def prune(args: argparse.Namespace) -> None:
    """Prunes a model and saves the smaller one: with data by a search and training, without data in one shot."""
    target = writable(args.target, ".keras")
    if target.resolve() == Path(args.model).resolve():
        raise InvalidArgumentError(f"{target} would overwrite the model to prune; choose another name")
    tflite = None if args.tflite is None else writable(args.tflite, ".tflite")
    if all(limit is None for limit in _limits(args).values()):
        raise InvalidArgumentError("no limit given: pass --max-macs, --max-params or --max-bytes")
    if args.data is None:
        given = [f"--{name.replace('_', '-')}" for name in _WITH_DATA if getattr(args, name) is not None]
        if given:
            raise InvalidArgumentError(f"without --data, there is nothing to do for {', '.join(given)}")
        _prune_alone(args, target)
    else:
        model = load(args.model, args.custom_objects)
        from keras_pcp.cli.tuning import prune_and_tune

        options = {"criterion": args.criterion, "frozen_layers": args.frozen_layers, "on_unknown": args.on_unknown}
        prune_and_tune(model, args, _limits(args) | options, target, tflite)


def _prune_alone(args: argparse.Namespace, target: Path) -> None:
    model = load(args.model, args.custom_objects)
    from keras_pcp.criteria import score_channels
    from keras_pcp.graph.model_cost import count_cost
    from keras_pcp.select.select import select_by_cost
    from keras_pcp.surgery.copies import prune_model

    graph = _graph(args, model)
    scores = score_channels(model, graph, args.criterion)
    selection = select_by_cost(
        graph, scores, **_limits(args), min_channels=args.min_channels, multiple_of=args.multiple_of
    )
    small = prune_model(model, graph, selection)
    before, after = count_cost(graph), count_cost(small)
    with replacing(target) as part:
        small.save(part)
    print(compared(*({"MACs": cost.macs, "parameters": cost.params} for cost in (before, after))))
    print("".join(f"note: {note}\n" for note in before.notes()), end="")
    print(f"wrote {target}; its accuracy is low until it is trained: add --data, or fine-tune it yourself")


def export(args: argparse.Namespace) -> None:
    """Writes a verified LiteRT file."""
    target = writable(args.target, ".tflite")
    model, data = load(args.model, args.custom_objects), samples(args.representative_data)
    from keras_pcp.deliver.litert import export_litert

    file = export_litert(model, target, quantization=args.quantization, representative_data=data)
    print(
        f"wrote {file.path}: {file.bytes:,} bytes; differs from Keras by at most {file.max_error:.1e}, "
        f"on average {file.mean_error:.1e} of the output range"
    )


def bench(args: argparse.Namespace) -> None:
    """Prints the latency of LiteRT files, which run in turn. A Keras model is exported for it."""
    files = [existing(name) for name in args.models]
    from keras_pcp.deliver.latency import compare_latency
    from keras_pcp.deliver.litert import export_litert

    with tempfile.TemporaryDirectory() as folder:
        for i, (name, file) in enumerate(zip(args.models, files, strict=True)):
            if file.suffix != ".tflite":
                files[i] = export_litert(load(name, args.custom_objects), Path(folder) / f"{i}.tflite").path
        found = compare_latency(files, runs=args.runs, threads=args.threads)
        sizes = [file.stat().st_size for file in files]
    wide = max(len(name) for name in args.models)
    print(f"{'':<{wide}} {'bytes':>12} {'median, ms':>12} {'90 % below':>12} {'speedup':>9}")
    for name, size, latency in zip(args.models, sizes, found, strict=True):
        times = f"{latency.median:>12.3f} {latency.percentile_90:>12.3f}"
        print(f"{name:<{wide}} {size:>12,} {times} {found[0].median / latency.median:>8.2f}x")
    print(
        f"one sample on {args.threads} thread{'s' * (args.threads > 1)} of this CPU, {args.runs} runs of each in turn"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keras-pcp", description="Prunes channels out of saved Keras models.")
    parser.add_argument("--version", action="version", version=f"keras-pcp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, parents=list(parents), help=about, description=about, epilog=f"example: keras-pcp {_EXAMPLES[name]}"
        )

    custom = argparse.ArgumentParser(add_help=False)
    custom.add_argument(
        "--custom-objects",
        type=_names,
        action="extend",
        default=[],
        metavar="MODULE[:NAME],...",
        help="classes or functions that the file refers to. The modules are imported, so the rules in them are registered",
    )
    loaded = argparse.ArgumentParser(add_help=False, parents=[custom])
    loaded.add_argument("model", help="a saved Keras model")
    analysed = argparse.ArgumentParser(add_help=False)
    analysed.add_argument(
        "--on-unknown", choices=["error", "freeze"], default="error", help="what to do about layers without a rule"
    )
    analysed.add_argument(
        "--frozen-layers", type=_names, default=[], metavar="A,B", help="layers that keep their width, but train"
    )

    command = add("inspect", "show what can be pruned, and how far", loaded, analysed)
    command.add_argument("--json", action="store_true", help="print only JSON")
    command.set_defaults(run=inspect)
    _add_prune(add("prune", "prune, with --data also train, and write the result", loaded, analysed))
    _add_export(add("export", "write a verified LiteRT file", loaded))
    command = add("bench", "time *.tflite files or Keras models, in turn", custom)
    command.add_argument("models", nargs="+", metavar="file", help="a *.tflite file, or a saved Keras model")
    command.add_argument("--threads", type=_positive, default=1)
    command.add_argument("--runs", type=_positive, default=50)
    command.set_defaults(run=bench)
    return parser


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", help="file to write, *.tflite")
    command.add_argument("--quantization", choices=["float16", "dynamic", "int8"])
    command.add_argument(
        "--representative-data",
        metavar="X.npy",
        help="inputs, needed for int8; for a model with several inputs, "
        "X.npz with an array for each input, by name or in order",
    )
    command.set_defaults(run=export)


def _add_prune(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", help="file to write, *.keras")
    for name in _LIMITS:
        command.add_argument(
            f"--max-{name}", type=_limit, metavar="LIMIT", help="fraction (0.5) of the model, or absolute (300000000)"
        )
    command.add_argument(
        "--criterion",
        default="l1",
        metavar="NAME",
        help="l1 (default), or another criterion; without --data one of: " + ", ".join(_CRITERIA),
    )
    command.add_argument("--multiple-of", type=_positive, default=1, help="round widths up to a multiple of this")
    command.add_argument("--min-channels", type=_positive, default=1, help="least number of channels of every group")
    command.add_argument(
        "--data",
        metavar="SOURCE",
        help="samples of a classifier: a folder with a folder of images for each class (or with such folders in train/ and "
        "test/), a .npz file with x and y (or x_train, y_train, x_test, y_test), or a set of tensorflow-datasets",
    )
    command.set_defaults(run=prune)
    add = command.add_argument_group("with --data").add_argument
    add("--method", choices=["progressive", "adaptive", "one-shot"], help="how widths are found (default: progressive)")
    add("--tune-epochs", type=_count, metavar="N", help="epochs of training, the first half with pruning; 0: none (3)")
    add("--learning-rate", type=_rate, metavar="R", help="of Adam; falls to 0 as a cosine (0.001)")
    add("--batch-size", type=_positive, metavar="N", help="samples of a batch (32)")
    add("--refit", action="store_const", const=True, help="refit layers that read removed channels, by least squares")
    add("--flip", action="store_const", const=True, help="mirror images at random in training")
    add(
        "--pixels",
        choices=["0..255", "0..1", "-1..1"],
        help="pixel values that the model takes, if it does not rescale them",
    )
    add("--data-dir", metavar="FOLDER", help="where tensorflow-datasets keeps its data")
    add("--seed", type=_count, metavar="N", help="for the split, the order and the training (0)")
    add("--tflite", metavar="FILE", help="write a verified LiteRT file, too, *.tflite")
    add(
        "--quantization",
        choices=["float16", "dynamic", "int8"],
        help="of the LiteRT file; int8 is calibrated on the data",
    )
    add("--quiet", action="store_const", const=True, help="print only the result")


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    return {f"max_{name}": getattr(args, f"max_{name}") for name in _LIMITS}


def _limit(text: str) -> float | int:
    """Reads "0.5" as a fraction and "300000000" as an absolute number, for `keras_pcp.select.problem.Limits`."""
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    raise argparse.ArgumentTypeError(
        f"must be a fraction such as 0.5 or a whole number such as 300000000, got {text!r}"
    )


def _positive(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _graph(args: argparse.Namespace, model: Any) -> Any:
    from keras_pcp.graph.build import build_graph

    return build_graph(model, on_unknown=args.on_unknown, frozen_layers=args.frozen_layers)

"""The command `keras-pcp`: inspect, prune, export and bench a saved model.

keras-pcp inspect model.keras
keras-pcp prune model.keras small.keras --max-macs 0.5
keras-pcp export small.keras small.tflite --quantization float16
keras-pcp bench small.tflite

Results go to stdout. An error is one line on stderr and exit code 2; an interrupt is exit code 130. TensorFlow logs to
stderr while it is imported; TF_CPP_MIN_LOG_LEVEL=3 in the environment hides most of that.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.support.files import check_target, replacing

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
        wrote .../small.keras; fine-tune it before you use it, because pruning lowers accuracy
        0
    """
    args = _parser().parse_args(argv)
    try:
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


def _give_up_stdout() -> None:
    """Redirects stdout to nowhere: Python flushes it again at exit, and that must not fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def inspect(args: argparse.Namespace) -> None:
    """Prints what can be pruned in a model; with `--json`, prints only `Inspection.to_json()`."""
    from keras_pcp.graph.channel_graph import inspect_graph

    inspection = inspect_graph(_graph(args, _load(args)))
    print(json.dumps(inspection.to_json(), indent=1, allow_nan=False) if args.json else inspection)


def prune(args: argparse.Namespace) -> None:
    """Prunes a model in one shot and saves the smaller one."""
    from keras_pcp.criteria import score_channels
    from keras_pcp.graph.model_cost import count_cost
    from keras_pcp.select.select import select_by_cost
    from keras_pcp.surgery.copies import prune_model

    target = _writable(args.target, ".keras")
    if target.resolve() == Path(args.model).resolve():
        raise InvalidArgumentError(f"{target} would overwrite the model to prune; choose another name")
    model = _load(args)
    graph = _graph(args, model)
    selection = select_by_cost(
        graph,
        score_channels(model, graph, args.criterion),
        max_macs=args.max_macs,
        max_params=args.max_params,
        max_bytes=args.max_bytes,
        min_channels=args.min_channels,
        multiple_of=args.multiple_of,
    )
    small = prune_model(model, graph, selection)
    before, after = count_cost(graph), count_cost(small)
    with replacing(target) as part:
        small.save(part)
    print(f"{'':<11} {'before':>15} {'after':>15}   ratio")
    for name, old, new in (("MACs", before.macs, after.macs), ("parameters", before.params, after.params)):
        if not math.isnan(old):
            print(f"{name:<11} {old:>15,.0f} {new:>15,.0f}   {new / old if old else 1:.3f}")
    print("".join(f"note: {note}\n" for note in before.notes()), end="")
    print(f"wrote {target}; fine-tune it before you use it, because pruning lowers accuracy")


def export(args: argparse.Namespace) -> None:
    """Writes a verified LiteRT file."""
    from keras_pcp.deliver.litert import export_litert

    target = _writable(args.target, ".tflite")
    samples = _samples(args.representative_data)
    file = export_litert(_load(args), target, quantization=args.quantization, representative_data=samples)
    print(
        f"wrote {file.path}: {file.bytes:,} bytes; differs from Keras by at most {file.max_error:.1e}, "
        f"on average {file.mean_error:.1e} of the output range"
    )


def bench(args: argparse.Namespace) -> None:
    """Prints the latency of a LiteRT file, or of the LiteRT file of a Keras model."""
    from keras_pcp.deliver.litert import export_litert, measure_latency

    path = _existing(args.model)
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix != ".tflite":
            path = export_litert(_load(args), Path(folder) / "model.tflite").path
        milliseconds = measure_latency(path, runs=args.runs, threads=args.threads)
        print(
            f"{milliseconds:.3f} ms for one sample: median of {args.runs} runs of {path.stat().st_size:,} bytes, "
            f"{args.threads} thread{'s' if args.threads > 1 else ''}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keras-pcp", description="Prunes channels out of saved Keras models.")
    commands = parser.add_subparsers(required=True, metavar="command")
    loaded = argparse.ArgumentParser(add_help=False)
    loaded.add_argument("model", help="a saved Keras model")
    loaded.add_argument(
        "--custom-objects",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE[:NAME]",
        help="classes or functions that the file refers to; put this after the other arguments. The modules are "
        "imported, so the rules in them are registered",
    )
    analysed = argparse.ArgumentParser(add_help=False)
    analysed.add_argument(
        "--on-unknown", choices=["error", "freeze"], default="error", help="what to do about layers without a rule"
    )
    analysed.add_argument(
        "--frozen-layers", type=_names, default=[], metavar="A,B", help="layers that keep their width, but train"
    )

    command = commands.add_parser("inspect", parents=[loaded, analysed], help="show what can be pruned, and how far")
    command.add_argument("--json", action="store_true", help="print only JSON")
    command.set_defaults(run=inspect)
    _add_prune(commands.add_parser("prune", parents=[loaded, analysed], help="prune in one shot, without training"))

    command = commands.add_parser("export", parents=[loaded], help="write a verified LiteRT file")
    command.add_argument("target", help="file to write, *.tflite")
    command.add_argument("--quantization", choices=["float16", "dynamic", "int8"])
    command.add_argument(
        "--representative-data",
        metavar="X.npy",
        help="inputs, needed for int8; for a model with several inputs, "
        "X.npz with an array for each input, by name or in order",
    )
    command.set_defaults(run=export)

    command = commands.add_parser("bench", parents=[loaded], help="time a *.tflite file or a Keras model")
    command.add_argument("--threads", type=_positive, default=1)
    command.add_argument("--runs", type=_positive, default=50)
    command.set_defaults(run=bench)
    return parser


def _add_prune(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", help="file to write, *.keras")
    for name in ("macs", "params", "bytes"):
        command.add_argument(
            f"--max-{name}", type=_limit, metavar="LIMIT", help="fraction (0.5) of the model, or absolute (300000000)"
        )
    command.add_argument(
        "--criterion",
        default="l1",
        metavar="NAME",
        help="l1 (default), or another criterion that needs no data: " + ", ".join(_CRITERIA),
    )
    command.add_argument("--multiple-of", type=_positive, default=1, help="round widths up to a multiple of this")
    command.add_argument("--min-channels", type=_positive, default=1, help="least number of channels of every group")
    command.set_defaults(run=prune)


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


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise InvalidArgumentError(f"file {path} does not exist")
    return Path(path)


def _writable(path: str, suffix: str) -> Path:
    """Rejects a bad target before the work, not after it."""
    if not path.endswith(suffix):
        raise InvalidArgumentError(f"{path} must end in {suffix}")
    return check_target(path)


def _load(args: argparse.Namespace) -> Any:
    import keras

    path, custom = _existing(args.model), _custom_objects(args.custom_objects)
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise InvalidArgumentError(
            f"cannot load {path}: it is not a .keras file, or it is incomplete; save the model again"
        )
    try:
        return keras.models.load_model(path, custom_objects=custom, compile=False)
    except Exception as error:  # Keras and the deserialized layers raise many classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InvalidArgumentError(
            f"cannot load {path}: {reason} (name custom classes with --custom-objects module:Name)"
        ) from error


def _custom_objects(references: Sequence[str]) -> dict[str, Any]:
    if references and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not search this folder
    found: dict[str, Any] = {}
    for reference in references:
        module, _, name = reference.partition(":")
        try:
            loaded = importlib.import_module(module)
            found |= {name: getattr(loaded, name)} if name else {}
        except (ImportError, AttributeError, ValueError) as error:
            raise InvalidArgumentError(
                f"--custom-objects {reference}: {error}; write module:Name, or module if it registers its classes"
            ) from error
    return found


def _graph(args: argparse.Namespace, model: Any) -> Any:
    from keras_pcp.graph.build import build_graph

    return build_graph(model, on_unknown=args.on_unknown, frozen_layers=args.frozen_layers)


def _samples(path: str | None) -> Any:
    """Reads an array, or the arrays of a .npz file: by name, or in order if NumPy chose the names."""
    import numpy as np

    if path is None:
        return None
    try:
        found = np.load(_existing(path))
        if not isinstance(found, np.lib.npyio.NpzFile):
            return found
        with found:
            arrays = {name: found[name] for name in found.files}
    except PruningError:
        raise
    except Exception as error:  # NumPy raises what its readers of zip files, headers and pickles raise
        raise InvalidArgumentError(f"{path} is not a .npy or .npz file of numbers: {error}") from error
    in_order = [f"arr_{i}" for i in range(len(arrays))]
    return [arrays[name] for name in in_order] if set(arrays) == set(in_order) else arrays

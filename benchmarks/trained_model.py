"""The trained classifier that a benchmark prunes, and its data; what the benchmarks on one have in common."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from image_data import Arrays, hold_out, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name the model and its data."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--mean", type=float, default=0.0)
    parser.add_argument("--std", type=float, default=1.0)
    parser.add_argument("--begin", type=float, default=0.0)
    parser.add_argument("--end", type=float, default=0.3)
    parser.add_argument("--out", type=Path)


def prepared(args: argparse.Namespace) -> tuple[Arrays, Arrays, Arrays]:
    """Returns normalized training, validation and test data; 5,000 training images are held out."""
    (x, y), (x_test, y_test) = load(args.data, args.data_dir)
    train, val = hold_out((x - args.mean) / args.std, y, 5000)
    return train, val, ((x_test - args.mean) / args.std, y_test)

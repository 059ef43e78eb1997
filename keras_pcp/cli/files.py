"""Files of the command: models, samples, and what it writes. Nothing here imports Keras before it is needed."""

import importlib
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_pcp.errors import InvalidArgumentError, PruningError
from keras_pcp.support.files import check_target


def existing(path: str) -> Path:
    """Returns the path of a file that exists."""
    if not Path(path).is_file():
        raise InvalidArgumentError(f"file {path} does not exist")
    return Path(path)


def writable(path: str, suffix: str) -> Path:
    """Rejects a bad target before the work, not after it."""
    if not path.endswith(suffix):
        raise InvalidArgumentError(f"{path} must end in {suffix}")
    return check_target(path)


def load(path: str, references: Sequence[str]) -> Any:
    """Loads a model without its compile state. `references` are module:Name of custom classes."""
    file = existing(path)
    if file.suffix == ".keras" and not zipfile.is_zipfile(file):
        raise InvalidArgumentError(
            f"cannot load {path}: it is not a .keras file, or it is incomplete; save the model again"
        )
    import keras  # takes seconds, so a wrong name is said before

    custom = _custom_objects(references)
    try:
        return keras.models.load_model(file, custom_objects=custom, compile=False)
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


def samples(path: str | None) -> Any:
    """Reads an array, or the arrays of a .npz file: by name, or in order if NumPy chose the names."""
    import numpy as np

    if path is None:
        return None
    try:
        found = np.load(existing(path))
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

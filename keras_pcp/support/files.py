"""Writes files completely or not at all."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_pcp.errors import FileError, InvalidArgumentError


def check_target(path: str | Path) -> Path:
    """Returns the path of a file to write. Rejects one that cannot be written before the work, not after it.

    Raises:
        InvalidArgumentError: it is not a path, it is a folder, or its folder does not exist or is not writable.

    Example:
        >>> check_target("nowhere/model.tflite")
        Traceback (most recent call last):
        keras_pcp.errors.InvalidArgumentError: folder nowhere does not exist; create it first
    """
    try:
        path = Path(path)
    except TypeError:
        raise InvalidArgumentError(f"expected the path of a file, got {path!r}") from None
    folder = path.parent
    if not folder.is_dir():
        raise InvalidArgumentError(f"folder {folder} does not exist; create it first")
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder; pass the name of a file")
    if not _is_special(path) and not os.access(_real(path).parent, os.W_OK):
        raise InvalidArgumentError(f"folder {_real(path).parent} is not writable; choose another folder")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to. At the end of the block, that file replaces `path` in one step.

    The new file has the mode of the old one, or the usual mode for new files. A symbolic link stays, and the file that it
    points to is replaced. If the block fails or is interrupted, the old file is unchanged, and nothing else is left behind.

    Args:
        path: the file to write. The temporary path has the same name, in a temporary folder next to it.

    Raises:
        InvalidArgumentError: see `check_target`.
        FileError: the system cannot write the file, for example because the disk is full.
    """
    path = check_target(path)
    if _is_special(path):  # such as /dev/stdout: there is nothing to lose
        with _named(path):
            yield path
        return
    target = _real(path)
    with _named(path), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        part = Path(folder) / target.name
        yield part
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)


def write(path: str | Path, content: bytes | str) -> None:
    """Writes a file; see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns a failed write into a FileError that names the file."""
    try:
        yield
    except Exception as error:
        # A writer may fail again while it cleans up after a full disk; the first error is then the context of the second.
        cause = _system_error(error)
        if cause is None or isinstance(error, FileError):
            raise
        raise FileError(f"cannot write {path}: {cause.strerror or cause}; an existing file is unchanged") from error


def _system_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()

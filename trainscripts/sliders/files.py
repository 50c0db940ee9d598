"""Files that appear whole under their name, or not at all, also when the power fails."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sliders.errors import InputError

TEMPORARY = ".tmp"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes the name at the end, or is gone if anything is raised.

    Bytes reach the disk before the name does, and the name before this returns.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are synced with their file system
            _sync(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def existing(path: Path) -> Path:
    """`path`, or the nearest above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_folder(path: Path, place: str, remedy: str) -> None:
    """Raises InputError if `path` is no folder that can be written to, nor one that can be made.

    place: the flag or key that names it. remedy: what to do about it, such as `choose another --out`.
    """
    parent = existing(path)
    if not parent.is_dir():
        raise InputError(f"{place}: {parent} is a file, not a folder: {remedy}.")
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions alone would mislead root, and on odd file systems
            pass
    except OSError as error:
        raise InputError(f"{place}: {parent} cannot be written to: {remedy}.") from error


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, stem: str) -> None:
    """What a killed process of the same run was writing; nobody else may be writing there meanwhile."""
    for path in folder.iterdir():
        if path.name.startswith(stem) and path.name.endswith(TEMPORARY):
            path.unlink()

"""Files that appear whole under their name, or not at all, also when the power fails."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tqdm import tqdm

from sliders.errors import InputError

TEMPORARY = ".tmp"
WINDOWS = os.name == "nt"
BINARY = getattr(os, "O_BINARY", 0)  # or Windows takes a last byte of 0x1A for the end of a text, and cuts it off
# Seconds to wait for whoever looks into a file just then: on Windows an indexer or a virus scanner keeps others off it.
PATIENCE = 2.0 if WINDOWS else 0.0
SAME_NAME = re.IGNORECASE if WINDOWS else 0  # a regular expression's flag with which names match that mean one file


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes the name at the end, or is gone if anything is raised.

    Bytes reach the disk before the name does, and the name before this returns.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        _sync(temporary, os.O_RDWR | BINARY)
        _rename(temporary, path)
        if not WINDOWS:  # where a folder cannot be opened, and renames are synced with their file system
            _sync(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def _rename(path: Path, target: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            path.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.05)


def remove(path: Path) -> None:
    """Gone, unless the system keeps it, as Windows does for another program that has it open: then with a warning."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        tqdm.write(f"warning: {path} could not be removed ({error.strerror}): close what has it open, then remove it.")


def remove_leftovers(folder: Path, stem: str) -> None:
    """What a killed process of the same run was writing; nobody else may be writing there meanwhile."""
    ours = re.compile(re.escape(stem) + ".*" + re.escape(TEMPORARY), SAME_NAME)
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            remove(path)


def existing(path: Path) -> Path:
    """`path`, or the nearest above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_folder(path: Path, place: str, remedy: str, longest: str = "") -> None:
    """Raises InputError if `path` is no folder that can be written to, nor one that can be made.

    place: the flag or key that names it. remedy: what to do about it, such as `choose another --out`. longest: the
    longest of the names that files in it will have.
    """
    parent = existing(path)
    if not parent.exists():
        raise InputError(f"{place}: {parent} is not there: {remedy}.")
    if not parent.is_dir():
        raise InputError(f"{place}: {parent} is a file, not a folder: {remedy}.")
    probe = parent / f"{uuid4().hex}{TEMPORARY}"
    try:
        _probe(probe, path == parent)
    except OSError as error:
        raise InputError(f"{place}: {parent} cannot be written to: {remedy}.") from error
    if WINDOWS and longest:
        _check_length(parent, len(str((path / (longest + TEMPORARY)).absolute())), place, remedy)


def _probe(path: Path, as_file: bool) -> None:
    """Make and remove what will be made first: on Windows some folders take folders and no files. Permissions alone would
    mislead root, and on odd file systems; the library's temporary files would try names for hours on Windows."""
    if as_file:
        path.touch(exist_ok=False)
        path.unlink()
    else:
        path.mkdir()
        path.rmdir()


def _check_length(parent: Path, length: int, place: str, remedy: str) -> None:
    """Windows takes paths of 259 characters, or longer ones where that is switched on: a file of that length tells."""
    name = length - len(str(parent.absolute())) - 1
    try:
        _probe(parent / uuid4().hex.ljust(min(name, 255), "x"), as_file=True)
    except PermissionError:
        pass  # a folder of folders alone: its path can be no long one
    except OSError as error:
        raise InputError(
            f"{place}: files there will have paths of {length} characters, more than Windows takes: {remedy}, a shorter one."
        ) from error


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

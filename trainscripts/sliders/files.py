"""Files that appear whole under their name, or not at all, also when the power fails."""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from tqdm import tqdm

from sliders.errors import InputError

TEMPORARY = ".tmp"
WINDOWS = os.name == "nt"
BINARY = getattr(os, "O_BINARY", 0)  # or Windows takes a last byte of 0x1A for the end of a text, and cuts it off
# Seconds to wait for whoever looks into a file just then: on Windows an indexer or a virus scanner keeps others off it.
PATIENCE = 2.0 if WINDOWS else 0.0
LONGEST_PATH = 259  # characters, unless Windows has been told to take longer ones
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
        remove(temporary)


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
    try:
        _try_to_write(parent, path == parent)
    except OSError as error:
        raise InputError(f"{place}: {parent} cannot be written to: {remedy}.") from error
    length = len(str((path / (longest + TEMPORARY)).absolute()))
    if WINDOWS and length > LONGEST_PATH and not _long_paths():
        raise InputError(
            f"{place}: files there will have paths of up to {length} characters, and Windows takes {LONGEST_PATH}: {remedy}, a "
            "shorter one."
        )


def _try_to_write(folder: Path, files: bool) -> None:
    """Permissions alone would mislead root, and on odd file systems. Raises OSError.

    On Windows some folders take folders and no files, and Python's temporary files try names there for hours.
    """
    if not WINDOWS:
        with tempfile.TemporaryFile(dir=folder):
            return
    path = folder / f"{uuid4().hex}{TEMPORARY}"
    if files:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TEMPORARY))  # gone when it is closed
        return
    path.mkdir()
    with suppress(OSError):  # somebody may look into it just then
        path.rmdir()


def _long_paths() -> bool:
    """Has this Windows been told to take them?"""
    import ctypes

    told = ctypes.WinDLL("ntdll").RtlAreLongPathsEnabled
    told.restype = ctypes.c_ubyte
    return bool(told())


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Atomic writes, which leave a file complete or absent even after a power failure, and checks of files and folders."""

import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from sliders.system.errors import InputError

TEMPORARY = ".tmp"
WINDOWS = os.name == "nt"
# not verified on Windows: there, a file opened as text loses a last byte of 0x1A
BINARY = getattr(os, "O_BINARY", 0)
SAME_NAME = re.IGNORECASE if WINDOWS else 0  # flag for regular expressions that match file names
PATIENCE = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between attempts to rename a file, on Windows
LONGEST_PATH = 259  # characters, on Windows by default (not verified on Windows)


@contextmanager
def atomic_write(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to. On success it is renamed to `path`, otherwise removed.

    The file is synced to disk before it is renamed, and its folder before this returns. shared: whether other processes may
    write `path` at the same time. Raises OSError.
    """
    temporary = path.with_name(f"{path.name}{f'.{os.getpid()}' if shared else ''}{TEMPORARY}")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR | BINARY)
        _rename(temporary, path)
        if not WINDOWS:  # where a folder cannot be opened
            _sync(path.parent, os.O_RDONLY)
    finally:
        remove(temporary)


def _rename(source: Path, target: Path) -> None:
    """Windows refuses while any program has one of the two open, as virus scanners do for a moment. Not verified on Windows."""
    for wait in PATIENCE if WINDOWS else ():
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(wait)
    source.replace(target)


def remove(path: Path) -> None:
    """Removes a file that may not exist. Prints a warning if the system refuses."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        tqdm.write(
            f"warning: {path} could not be removed ({error.strerror}): close the program that uses it, then remove it."
        )


def remove_leftovers(folder: Path, stem: str) -> None:
    """Removes temporary files that a killed run named `stem` left in `folder`. Call it with the folder locked."""
    ours = re.compile(re.escape(stem) + ".*" + re.escape(TEMPORARY), SAME_NAME)
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            remove(path)


def existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def why_not_read(path: Path, error: OSError) -> str:
    """The system's reason, and where `path` leads to if it is a link."""
    reason = error.strerror or type(error).__name__
    try:
        return f"{reason}; it is a link to {path.readlink()}"
    except OSError:  # it is none, or lies where one cannot look
        return reason


def is_missing(path: Path, error: OSError) -> bool:
    """Whether reading failed because nothing is there, not even a link that leads nowhere."""
    # that of pathlib raises if a folder above cannot be read
    return isinstance(error, FileNotFoundError) and not os.path.islink(path)  # noqa: PTH114


def cannot_be_read(path: Path, error: OSError) -> str:
    """`cannot be read (reason): check …`, for a file of weights."""
    memory = ", and the size of the paging file" if WINDOWS else ""  # not verified on Windows
    return f"cannot be read ({why_not_read(path, error)}): check the path and its permissions{memory}"


def check_folder(path: Path, place: str, remedy: str, longest: str = "") -> None:
    """Raises InputError unless `path` is a folder that can be written to, or one that can be created. Leaves no trace.

    place: the flag or key that names it. remedy: the advice in the message, such as `choose another --out`. longest: the
    longest file name that will be used in it.
    """
    parent = existing(path)
    if not parent.exists():
        raise InputError(f"{place}: {parent} does not exist: {remedy}.")
    if not parent.is_dir():
        raise InputError(f"{place}: {parent} is a file, not a folder: {remedy}.")
    try:
        with tempfile.TemporaryFile(dir=parent):  # permission bits do not restrict root, nor describe every file system
            pass
    except OSError as error:
        raise InputError(f"{place}: {parent} cannot be written to: {remedy}.") from error
    length = len(str((path / (longest + TEMPORARY)).absolute()))
    if WINDOWS and length > LONGEST_PATH:
        raise InputError(
            f"{place}: paths there would have {length} characters, Windows allows {LONGEST_PATH}: {remedy}, a shorter one."
        )


@contextmanager
def readable(path: Path, place: str) -> Iterator[BinaryIO]:
    """Opens a file, links followed. Raises InputError, with the system's reason, if that is none or cannot be read."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):  # opening a pipe would wait for its other end
            what = "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"
            raise InputError(f"{place} is {what}, not a file: check the path.")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{place} {cannot_be_read(path, error)}.") from error


def check_listable(path: Path, place: str) -> None:
    """Raises InputError, with the system's reason, unless `path` is a folder whose content can be listed."""
    try:
        os.scandir(path).close()
    except OSError as error:
        raise InputError(
            f"{place}: {path} cannot be read as a folder ({why_not_read(path, error)}): check the path and its permissions."
        ) from error


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

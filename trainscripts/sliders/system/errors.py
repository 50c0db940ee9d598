"""The exception for errors that a user can correct, and helpers to word its messages."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Wrong input. The message gives the value, its place (flag, key or path) and the remedy.

    Entry scripts print it without a traceback and exit with status 2. Any other exception is a bug in this project.
    """


@contextmanager
def places_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """In its block, a check that several commands share names the flag of this one: {place as the check names it: flag}.

    Applies to the places with which the lines of an InputError begin.
    """
    try:
        yield
    except InputError as error:
        lines = [_renamed(line, names) for line in str(error).splitlines()]
        if lines == str(error).splitlines():
            raise
        raise InputError("\n".join(lines)) from error


def _renamed(line: str, names: Mapping[str, str]) -> str:
    place, colon, rest = line.partition(":")
    return f"{names[place]}{colon}{rest}" if place in names else line


def first_line(error: Exception) -> str:
    """The first line of a library's error message, or the error's type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cannot_be_read(error: OSError) -> str:
    """`cannot be read (reason): check …`, for a file of weights. Leaves out the path, which library messages repeat."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or first_line(error)
    if isinstance(error, FileNotFoundError) and error.filename and (path := Path(error.filename)).is_symlink():
        reason = f"a link to {path.readlink()}, which does not exist"
    memory = ", and the size of the paging file" if sys.platform == "win32" else ""  # not verified on Windows
    return f"cannot be read ({reason}): check the path and its permissions{memory}"


def either(names: Iterable[object]) -> str:
    """`a, b or c`: lists the values that an error message suggests. Takes at least one."""
    *others, last = map(str, names)
    return f"{', '.join(others)} or {last}" if others else last

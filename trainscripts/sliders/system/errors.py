"""The exception for errors that a user can correct, and helpers to word its messages."""

import sys
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong input. The message gives the value, its place (flag, key or path) and the remedy.

    Entry scripts print it without a traceback and exit with status 2. Any other exception is a bug in this project.
    """


def first_line(error: Exception) -> str:
    """The first line of a library's error message, or the error's type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cannot_be_read(error: OSError) -> str:
    """`cannot be read (reason): check …`, for a file of weights. Leaves out the path, which library messages repeat."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or first_line(error)
    memory = ", and the size of the paging file" if sys.platform == "win32" else ""  # not verified on Windows
    return f"cannot be read ({reason}): check the path and its permissions{memory}"


def either(names: Iterable[object]) -> str:
    """`a, b or c`: lists the values that an error message suggests. Takes at least one."""
    *others, last = map(str, names)
    return f"{', '.join(others)} or {last}" if others else last

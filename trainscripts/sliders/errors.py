"""The one exception that a user is meant to read, and what its sentences are made of."""

import sys


class InputError(ValueError):
    """Wrong input, said in sentences that hold the value, the place and the remedy.

    Entry scripts print it without a traceback and exit with status 2; anything else that is raised is a bug of ours.
    """


def first_line(error: Exception) -> str:
    """What a library's error says before it goes into detail; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cannot_be_read(error: OSError) -> str:
    """`cannot be read (…): check …`, of a file of weights; the library's errors repeat its path."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or first_line(error)
    memory = ", and that the paging file has room for it" if sys.platform == "win32" else ""
    return f"cannot be read ({reason}): check the path and its permissions{memory}"


def either(names) -> str:
    """`"a, b or c"`: how an error lists the values that would have been right."""
    names = [str(name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

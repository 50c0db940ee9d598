"""The exception for errors that a user can correct, and helpers to word its messages."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


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


def either(names: Iterable[object]) -> str:
    """`a, b or c`: lists the values that an error message suggests. Takes at least one."""
    *others, last = map(str, names)
    return f"{', '.join(others)} or {last}" if others else last

"""What every entry script does with errors: a sentence on stderr and a status, never a traceback for wrong input."""

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import TextIO

from sliders.errors import InputError


class LastingStream:
    """An output stream that may break, as that to `tee` does at Ctrl-C, without breaking whoever writes to it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if error.errno != errno.ENOSPC:  # the reader is gone for good, and what is buffered must go somewhere
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def command(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
    """`main(argv)` → the same, returning the exit status: its own, or 0; 2 for wrong input, 130 for Ctrl-C."""

    @functools.wraps(main)
    def wrapped(argv: list[str]) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # Windows' code pages lack some of the signs
        with (
            contextlib.redirect_stdout(LastingStream(sys.stdout)),
            contextlib.redirect_stderr(LastingStream(sys.stderr)),
        ):
            try:
                return _answered(main, argv)
            finally:
                sys.stdout.flush()  # while it may still fail without a word

    return wrapped


def _answered(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    try:
        return main(argv) or 0
    except InputError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{str(error.filename)[:80]}: " if error.filename else ""
        print(
            f"error: {place}{error.strerror or error}: check the path, its permissions and the space left.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped; files that were written are whole", file=sys.stderr)
        return 130

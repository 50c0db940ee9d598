"""What every entry script does with errors: a sentence on stderr and a status, never a traceback for wrong input."""

import functools
import sys
from collections.abc import Callable

from sliders.errors import InputError


def command(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
    """`main(argv)` → the same, returning the exit status: its own, or 0; 2 for wrong input, 130 for Ctrl-C."""

    @functools.wraps(main)
    def wrapped(argv: list[str]) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # Windows' code pages lack some of the signs
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

    return wrapped

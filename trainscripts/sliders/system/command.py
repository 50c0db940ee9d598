"""What every entry script does: errors and signals end with a message and an exit status, and torch's threads share processors."""

import errno
import functools
import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import TextIO

from sliders.system.errors import InputError
from sliders.system.launch import launch, only_errors
from sliders.system.processors import share_processors
from sliders.system.signals import Stopped


class LastingStream:
    """An output stream whose writes never fail: once its reader is gone, as `tee` is after Ctrl-C, they are discarded."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # not every encoding has all the characters that are printed

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, method: Callable, *arguments: str) -> None:
        try:
            method(*arguments)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # a full disk may get room again; a reader does not come back
                with suppress(OSError):  # Python flushes the buffer again at exit, which must not fail
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def open_closed_streams() -> None:
    """Opens those of standard input, output and error that are closed, as after `>&-`, on nothing.

    Otherwise the next file to be opened would get the number of one of them, and whatever is printed would go into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays open


def command(main: Callable[..., None]) -> Callable[..., int]:
    """Decorates `main(argv, …)` to return an exit status: 0; 2 for wrong input; the signal's, or 130 for Ctrl-C.

    What a signal stopped can be resumed, so the message contains the command: the script that runs, and argv.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str], **options: str) -> int:
        open_closed_streams()
        share_processors()  # main imports torch only later
        with redirect_stdout(LastingStream(sys.stdout)), redirect_stderr(LastingStream(sys.stderr)):
            try:
                with only_errors():
                    return _until_stopped(functools.partial(main, argv, **options), argv)
            except InputError as error:
                return _failed(str(error))
            except OSError as error:
                path = f"{str(error.filename)[:80]}: " if error.filename else ""
                return _failed(f"{path}{error.strerror or error}: check the path, its permissions and the free space.")
            except KeyboardInterrupt:
                print("stopped; every file that was written is complete", file=sys.stderr)
                return 130
            finally:
                sys.stdout.flush()  # here an error is still suppressed; at exit it would be printed

    return wrapped


def _until_stopped(main: Callable[[], None], argv: list[str]) -> int:
    try:
        main()
        return 0
    except Stopped as stopped:
        print(f"stopped by {stopped.name}; continue with\n  {resume_command([sys.argv[0], *argv])}", file=sys.stderr)
        return stopped.status


def _failed(message: str) -> int:
    print("\n".join(f"error: {line}" for line in message.splitlines()), file=sys.stderr)
    return 2


def resume_command(words: list[str]) -> str:
    """The command that resumes the run that was started with the script and arguments `words`.

    Keeps `--overwrite`: later runs of a --stylecheck may still have files to replace.
    """
    words = [*(w for w in words if w != "--resume"), "--resume"]
    if (count := launch().count) > 1:
        words = ["accelerate", "launch", "--num_processes", str(count), *words]
    if sys.platform == "win32":  # not verified on Windows: `uv run` alone would reinstall PyTorch without CUDA
        return " ".join(_for_powershell(w) for w in ["uv", "run", "--no-sync", *words])
    return shlex.join(["uv", "run", *words])


def _for_powershell(word: str) -> str:
    """The word, in single quotes if PowerShell could interpret it. Not verified on Windows."""
    if re.fullmatch(r"[\w.:\\/=+-]+", word):
        return word
    return "'" + word.replace("'", "''") + "'"

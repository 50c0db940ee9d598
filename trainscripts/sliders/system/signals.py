"""Stopping a run by signal: the first lets the current step and its save finish, the second stops at once."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ALWAYS = (signal.SIGINT, signal.SIGTERM)  # even if ignored, as SIGINT is in what a script starts with `&`
UNLESS_IGNORED = [getattr(signal, s) for s in ("SIGHUP", "SIGBREAK") if hasattr(signal, s)]  # not verified on Windows
REPEATED_WITHIN = 1.0  # seconds in which signals count as one: from Ctrl-C, the child of `uv run` gets a second, by uv


class Stopped(BaseException):
    """A signal ended the run. Not an `Exception`, so that no error handler catches it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.name, self.status = signal.Signals(signum).name, 128 + signum  # the exit status that shells use


class Interrupts:
    """`with Interrupts() as interrupts:` handles stop signals; enter it in the main thread.

    A signal raises `Stopped` where the process stands. Within `deferred()`, except in `at_once()`, the first one is
    only recorded in `received`.
    """

    received: int | None = None
    _received_at = -math.inf
    _deferring = _raised = False

    def __enter__(self) -> "Interrupts":
        signals = [*ALWAYS, *(s for s in UNLESS_IGNORED if signal.getsignal(s) != signal.SIG_IGN)]  # as under nohup
        self._previous = {signum: signal.signal(signum, self._handle) for signum in signals}
        return self

    def __exit__(self, _type, error: BaseException | None, _traceback) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self._raised and error is not None and not isinstance(error, Stopped):
            raise Stopped(self.received) from error  # pydantic, for one, wraps what is raised in its callbacks

    def _handle(self, signum: int, _frame) -> None:
        if time.monotonic() < self._received_at + REPEATED_WITHIN:
            return
        self._raised = not self._deferring or self.received is not None
        self.received, self._received_at = signum, time.monotonic()
        stopped = Stopped(signum)
        if self._raised:
            raise stopped
        with suppress(OSError):  # the terminal may be gone; print() may be what was interrupted, and is not reentrant
            os.write(2, f"\n{stopped.name}: finishing this step, then saving; a second signal stops at once\n".encode())

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raises `Stopped` at the end if a signal was received and nothing else was raised."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.received is not None:
            raise Stopped(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For slow work that need not finish: the first signal ends this block; within `deferred()`, only this block."""
        deferring, self._deferring = self._deferring, False
        try:
            yield
        except BaseException:
            if not (deferring and self._raised):
                raise
            self._raised = False
        finally:
            self._deferring = deferring

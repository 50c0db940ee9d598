"""SIGINT, SIGTERM, SIGHUP, and Windows' Ctrl-Break: the first one lets a step and its save finish, the second stops at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
# Seconds in which another signal is taken for the same one: a group's reaches the child of `uv run` twice, once from uv.
REPEATED_WITHIN = 1.0


class Stopped(BaseException):
    """A signal ended the run. No `Exception`, so that nobody who handles errors takes it for one."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.name, self.status = signal.Signals(signum).name, 128 + signum  # the status that shells give


class Interrupts:
    """`with Interrupts() as interrupts:` takes over these signals for this process, whatever its siblings do.

    Outside of `deferred()`, and in `at_once()` within it, a signal raises `Stopped` where the process stands. Otherwise
    the first is only noted in `received`. A SIGHUP that is ignored, as under nohup, stays so. Not entered, or entered in
    another than the main thread, it notices nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self._raised: int | None = None
        self._received_at = 0.0
        self._deferring = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            # SIGINT too is ignored, in what a script starts with `&`, and yet is how one asks it to stop.
            always = (signal.SIGINT, signal.SIGTERM)
            heeded = [s for s in SIGNALS if s in always or signal.getsignal(s) != signal.SIG_IGN]
            self._previous = {s: signal.signal(s, self._handle) for s in heeded}
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        # A library may have made an error of its own of it, as pydantic does in its callbacks.
        if self._raised is not None and error is not None and not isinstance(error, Stopped):
            raise Stopped(self._raised) from error

    def _handle(self, signum: int, _frame) -> None:
        first, now = self.received is None, time.monotonic()
        if not first and now < self._received_at + REPEATED_WITHIN:
            return
        self.received, self._received_at = signum, now
        if not first or not self._deferring:
            self._raised = signum
            raise Stopped(signum)
        name = signal.Signals(signum).name
        with suppress(OSError):  # the terminal may be gone
            # print() may be what was interrupted, and cannot be entered twice
            os.write(2, f"\n{name}: finishing this step, then saving; once more stops at once\n".encode())

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raises `Stopped` at the end if a signal has come meanwhile and nothing else was raised."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.received is not None:
            raise Stopped(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For what is slow and need not be finished: there the first signal ends this block, and nothing around it."""
        deferring, self._deferring = self._deferring, False
        try:
            yield
        except BaseException:
            if not deferring or self._raised is None:
                raise
            self._raised = None
        finally:
            self._deferring = deferring

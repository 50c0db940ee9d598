"""SIGINT and SIGTERM: the first one lets a step and its save finish, the second stops at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal ended the run. No `Exception`, so that nobody who handles errors takes it for one."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.name, self.status = signal.Signals(signum).name, 128 + signum  # the status that shells give


class Interrupts:
    """`with Interrupts() as interrupts:` takes over both signals for this process, whatever its siblings do.

    Outside of `deferred()` a signal raises `Stopped` where the process stands. Inside, the first is only noted in
    `received`. Not entered, or entered in another than the main thread, it notices nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self._deferring = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame) -> None:
        if not self._deferring or self.received is not None:
            self.received = signum
            raise Stopped(signum)
        self.received = signum
        name = signal.Signals(signum).name
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

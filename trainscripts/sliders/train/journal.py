"""Logs a run while it trains: TensorBoard, wandb and the progress bar."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from sliders.config.schema import Settings
from sliders.train.step import StepResult


class Log:
    """Writes to TensorBoard, and to wandb if enabled. If that fails, for example on a full disk, only the log ends."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator, self._failed = accelerator, False

    def log(self, values: dict[str, float], step: int) -> None:
        self._try(lambda: self._accelerator.log(values, step=step), step)

    def log_picture(self, picture: Image.Image, step: int) -> None:
        self._try(lambda: self._log_picture(picture, step), step)

    def _log_picture(self, picture: Image.Image, step: int) -> None:
        for tracker in self._accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"preview": np.asarray(picture)[None]}, step=step, **layout)

    def _try(self, write: Callable[[], None], step: int) -> None:
        try:
            if not self._failed:
                write()
        except OSError as error:
            self._failed = True
            tqdm.write(f"warning: the log ends at step {step} ({error.strerror or error}); training goes on.")


class Journal:
    """Collects steps whose values are still on the device, until `write` reads them all at once."""

    def __init__(self, read: Callable[[list[StepResult]], list[tuple[float, float]]]):
        self._read = read
        self._unread: list[StepResult] = []
        self._since = time.perf_counter()
        self._seconds: list[float] = []  # per step: the mean of each reading
        self.losses: list[float] = []

    def add(self, result: StepResult) -> None:
        self._unread.append(result)

    def write(self, log: Log, bar: tqdm) -> None:
        """Writes the collected steps to the log and the progress bar. Raises NonFiniteError."""
        if not self._unread:
            return
        values = self._read(self._unread)
        for result, (loss, norm) in zip(self._unread, values, strict=True):
            log.log({"loss": loss, "lr": result.lr, "grad_norm": norm}, step=result.step + 1)
            self.losses.append(loss)
        scales = " ".join(f"{row.scale:.3g}" for row in result.draw.rows[:2])
        shown = f"loss {loss:.4f} lr {result.lr:.2e} scales {scales}"
        bar.set_postfix_str(shown, refresh=False)
        now = time.perf_counter()
        self._seconds.append((now - self._since) / len(self._unread))
        self._since, self._unread = now, []

    def seconds_per_step(self) -> float:
        """The median of the readings, so that compiling and warming up do not count; 0 if there are none."""
        return sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else 0.0


@contextmanager
def trackers(settings: Settings) -> Iterator[Log]:
    """A log to TensorBoard in the run's folder, and to wandb if enabled."""
    wandb = {"wandb": {"name": settings.stem}} if settings.logging.use_wandb else {}
    accelerator = Accelerator(
        log_with=["tensorboard", *wandb], project_dir=settings.run_dir, cpu=not settings.device.isdigit()
    )
    accelerator.init_trackers("logs", init_kwargs=wandb)
    with _silent_writers():
        try:
            yield Log(accelerator)
        finally:
            with suppress(OSError):  # `accelerator.end_training` would also end the processes' connection
                for tracker in accelerator.trackers:
                    tracker.finish()


@contextmanager
def _silent_writers() -> Iterator[None]:
    """Silences OSErrors in TensorBoard's writer thread, because the next call of `Log.log` raises and reports them."""
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            previous(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous

"""The command line in processes of its own, forked from one that has imported everything: they start in a moment."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "trainscripts" / "imagesliders" / "train_lora-scale-xl.py"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sliders.train.runs", "bitsandbytes.optim", "tensorboard"])


def _train(argv: list[str], log: Path, environment: dict[str, str], threads: int) -> None:
    import torch

    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    torch.set_num_threads(threads)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.exit(runpy.run_path(str(SCRIPT))["main"](argv))


class Training:
    """`Training(argv, log)` starts; `log` gets what it prints."""

    def __init__(self, argv: list[str], log: Path, environment: dict[str, str] | None = None, prepare=None):
        """prepare: a function of a module that the child can import, called there before the training."""
        self.log = log
        log.write_bytes(b"")
        # daemon: a test that fails takes its trainings with it
        arguments = (argv, log, environment or {}, 1)
        self.process = CONTEXT.Process(target=_train if prepare is None else prepare, args=arguments, daemon=True)
        self.process.start()

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, happened, seconds: float = 120) -> "Training":
        """Wait for `happened()`; fails if the process ends before, or takes too long."""
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive() or happened(), self.output
            assert time.monotonic() < end, self.output
            self.process.join(0.005)
        return self

    def until_it_says(self, text: str) -> "Training":
        return self.until(lambda: text in self.output)

    def signal(self, signum: int) -> "Training":
        os.kill(self.process.pid, signum)
        return self

    def status(self, seconds: float = 120) -> int:
        """Exit status; that of a signal is negative."""
        self.process.join(seconds)
        assert not self.process.is_alive(), self.output
        return self.process.exitcode

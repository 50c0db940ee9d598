"""The command line in processes of its own, forked from one that has imported everything: they start in a moment."""

import importlib
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

from scripts import run_script

SCRIPT = Path(__file__).parent.parent / "trainscripts" / "imagesliders" / "train_lora-scale-xl.py"
PATIENCE = 400.0  # seconds; beside other busy processes a start alone may take a minute
STEPS_SHOWN = re.compile(r"training:[^\r\n]*\| *(\d+)/")  # by the progress bar
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
    sys.exit(run_script(SCRIPT, argv))


def hold_at(target: str, call: int, argv: list[str], log: Path, environment: dict[str, str], threads: int) -> None:
    """The training, but `target` (`module:class:method`) waits from its `call`-th call on until the file `go` exists.

    Beside the log; there the file `held` then says that it waits. So what a test does next does not race with the training.
    """
    module, cls, name = target.split(":")
    owner = getattr(importlib.import_module(module), cls)
    method, calls = getattr(owner, name), []

    def held(self, *arguments, **named):
        calls.append(None)
        if len(calls) >= call:
            (log.parent / "held").touch()
            while not (log.parent / "go").exists():
                time.sleep(0.001)
        return method(self, *arguments, **named)

    setattr(owner, name, held)
    _train(argv, log, environment, threads)


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

    def until(self, happened, seconds: float = PATIENCE) -> "Training":
        """Wait for `happened()`; fails if the process ends before, or takes too long."""
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive() or happened(), self.output
            assert time.monotonic() < end, self.output
            self.process.join(0.005)
        return self

    def until_it_says(self, text: str) -> "Training":
        return self.until(lambda: text in self.output)

    @property
    def steps_shown(self) -> int:
        """How many steps the progress bar has shown. It shows 0 before the first."""
        return max(map(int, STEPS_SHOWN.findall(self.output)), default=0)

    def until_it_trains(self) -> "Training":
        """Until a step is done."""
        return self.until(lambda: self.steps_shown > 0)

    def signal(self, signum: int) -> "Training":
        os.kill(self.process.pid, signum)
        return self

    def status(self, seconds: float = PATIENCE) -> int:
        """Exit status; that of a signal is negative."""
        self.process.join(seconds)
        assert not self.process.is_alive(), self.output
        return self.process.exitcode

"""Runs the training command and notes when each phase of its start ends, for bench_start.py.

Arguments: the report to write, the phase after which to stop, then those of train_lora-scale-xl.py. Times are those of
`time.time()`, so that the parent can count from the moment in which it started this process.
"""

import functools
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sliders import commands
from sliders.config.settings import load_settings

SCRIPT = Path(__file__).parent.parent / "imagesliders" / "train_lora-scale-xl.py"
PHASES = ("imports", "plan", "loading", "fingerprint", "encoding", "placing", "first step")


class Probe:
    """Writes {"ends": {phase: time}, ...} to `report` and ends the process after the phase `until`."""

    def __init__(self, report: Path, until: str):
        self._report, self._until = report, until
        self._ends: dict[str, float] = {}

    def ended(self, phase: str) -> None:
        import torch

        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.synchronize()
        self._ends[phase] = time.time()
        if phase == self._until:
            peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None
            device = torch.cuda.get_device_name() if gpu else "CPU"
            found = {"ends": self._ends, "device": device, "gpu_peak_gib": peak}
            self._report.write_text(json.dumps(found), encoding="utf-8")
            sys.stdout.flush()
            os._exit(0)  # what a run would do now is not measured

    def watch(self) -> None:
        """Imports what the command would import next, which ends the imports, and prepares for the other phases."""
        from sliders.models import FAMILIES
        from sliders.train import runs
        from sliders.train.outputs import Outputs
        from sliders.train.step import Step
        from sliders.train.trainer import Trainer

        self.after(runs, "plan_all", "plan")
        self.after(type(FAMILIES["sdxl"]), "load", "loading")
        self.after(Outputs, "know_model", "fingerprint")
        self.after(Trainer, "_encode", "encoding")
        self.after(Trainer, "_adapt", "placing")
        self.after(Step, "__call__", "first step")
        self.ended("imports")

    def after(self, owner: object, name: str, phase: str) -> None:
        """Makes `owner.name` end a phase whenever it returns."""
        original: Callable = getattr(owner, name)

        @functools.wraps(original)
        def noted(*args, **kwargs):
            result = original(*args, **kwargs)
            self.ended(phase)
            return result

        setattr(owner, name, noted)


def main() -> None:
    report, until, *argv = sys.argv[1:]
    probe = Probe(Path(report), until)

    def noted(*arguments):
        settings = load_settings(*arguments)
        probe.watch()
        return settings

    commands.load_settings = noted
    sys.argv = [str(SCRIPT), *argv]
    runpy.run_path(str(SCRIPT), run_name="__main__")


if __name__ == "__main__":
    main()

"""From settings to finished sliders: check all runs, print each plan, train one after the other."""

import gc
import time

import torch

from sliders.config.schema import Settings
from sliders.formats.checkpoint import checkpoints_of, prune_checkpoints
from sliders.report.web_ui import multiplier_template
from sliders.system.errors import InputError
from sliders.system.lock import locked
from sliders.system.processes import Processes, joined
from sliders.system.signals import Interrupts
from sliders.train.plan import Plan, describe, make_plan
from sliders.train.resources import check_disk, out_of_memory
from sliders.train.trainer import Report, Trainer


def run_all(runs: list[Settings], dry_run: bool = False) -> list[Report]:
    """Trains one slider after the other, together with the other processes of this launch if there are any."""
    with joined() as processes:
        return _run_all(runs, dry_run, processes)


def _run_all(runs: list[Settings], dry_run: bool, processes: Processes) -> list[Report]:
    """Every run is checked before the first one starts. With `dry_run` nothing is loaded or written."""
    plans = plan_all(runs)
    processes.gather(None)  # all have read the folders: now the first may change them
    if not dry_run and processes.first:
        forget_replaced(runs)
    reports = []
    with Interrupts() as interrupts:
        for plan in plans:
            print(describe(plan, processes.count, whole=dry_run), flush=True)
            if dry_run:
                continue
            began = time.perf_counter()
            report = train(plan, interrupts, processes)
            reports.append(report)
            print(summary(plan.settings, report, time.perf_counter() - began), flush=True)
            gc.collect()  # before the next model of a --stylecheck is loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if dry_run:
        print("\ndry run: nothing was loaded or written")
    return reports


def train(plan: Plan, interrupts: Interrupts, processes: Processes) -> Report:
    """One slider, with its folder locked. Raises InputError with advice when the GPU runs out of memory."""
    with processes.if_first(lambda: locked(plan.settings.run_dir)):
        try:
            trainer = Trainer(plan, processes=processes)
            if plan.settings.resume:
                trainer.resume()
            return trainer.run(interrupts)
        except torch.OutOfMemoryError as error:
            peak = torch.cuda.max_memory_allocated(plan.device) if plan.device.startswith("cuda") else 0
            raise InputError(out_of_memory(plan.settings, plan.family, error, peak)) from error


def plan_all(runs: list[Settings]) -> list[Plan]:
    """Raises one InputError with what is wrong in any of the runs."""
    plans, problems = [], []
    for settings in runs:
        try:
            plans.append(make_plan(settings))
        except InputError as error:
            problems += str(error).splitlines()
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    check_disk([plan.disk_need for plan in plans])
    return plans


def forget_replaced(runs: list[Settings]) -> None:
    """Remove the checkpoints of runs that --overwrite replaces, of all runs before the first begins.

    So a later --resume finds only checkpoints of this command. Sliders stay until there is something in their place.
    """
    for settings in runs:
        if settings.overwrite and not settings.resume and checkpoints_of(settings):
            with locked(settings.run_dir):
                prune_checkpoints(settings, 0)
            if left := checkpoints_of(settings):
                raise InputError(
                    f"--overwrite: {min(left.values())} could not be removed: close the program that has it open, or choose another --name."
                )


def summary(settings: Settings, report: Report, seconds: float) -> str:
    """Speed, memory, the prompt to paste into a web UI with Dynamic Prompts in combinatorial mode, and what to look at."""
    memory = "" if report.peak_memory is None else f", peak GPU memory {report.peak_memory / 2**30:.1f} GiB"
    speed = f"{1 / report.seconds_per_step:.2f} steps/s, " if report.losses else "no steps were left to do, "
    lines = [
        f"saved   {report.path}",
        f"speed   {speed}{seconds:.0f} s in all{memory}",
        f"prompt  {multiplier_template(report.path.stem, settings.data.scales)}",
        *(f"{'page' if path.suffix == '.html' else 'picture':7} {path}" for path in report.shown),
    ]
    return "\n".join(lines)

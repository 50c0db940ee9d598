"""From settings to finished sliders: check all runs, tell the plan, train one after the other."""

import gc
import time

import torch

from sliders.dataset import ScaleFolders
from sliders.device import torch_device
from sliders.errors import InputError
from sliders.interrupts import Interrupts
from sliders.lock import locked
from sliders.plan import check_run, describe_run, weightless_adaptors
from sliders.resources import out_of_memory
from sliders.schema import Settings
from sliders.templates import multiplier_template
from sliders.trainer import Report, Trainer


def run_all(runs: list[Settings], dry_run: bool = False) -> list[Report]:
    """Every run is checked before the first one starts. With `dry_run` nothing is loaded or written."""
    checked = check_all(runs)
    reports = []
    with Interrupts() as interrupts:
        for settings, data in checked:
            print(describe_run(settings, data), flush=True)
            if dry_run:
                continue
            began = time.perf_counter()
            report = train(settings, data, interrupts)
            reports.append(report)
            print(summary(settings, report, time.perf_counter() - began), flush=True)
            gc.collect()  # before the next model of a --stylecheck is loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if dry_run:
        print("\ndry run: nothing was loaded or written")
    return reports


def train(settings: Settings, data: ScaleFolders, interrupts: Interrupts) -> Report:
    """One slider, with its folder to itself. Raises InputError with advice when the GPU's memory is used up."""
    trainer = None
    with locked(settings.run_dir):
        try:
            trainer = Trainer(settings, data)
            if settings.resume:
                trainer.resume()
            return trainer.run(interrupts)
        except torch.cuda.OutOfMemoryError as error:
            peak = torch.cuda.max_memory_allocated(torch_device(settings.device))
            parameters = weightless_adaptors(settings).num_parameters()
            raise InputError(out_of_memory(settings, parameters, str(error), peak, encoding=trainer is None)) from error


def check_all(runs: list[Settings]) -> list[tuple[Settings, ScaleFolders]]:
    """Each run with its data set. Raises one InputError with what is wrong in any of them."""
    checked, problems = [], []
    for settings in runs:
        try:
            checked.append((settings, check_run(settings)))
        except InputError as error:
            problems += str(error).splitlines()
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return checked


def summary(settings: Settings, report: Report, seconds: float) -> str:
    """Speed, memory, and the prompt to paste into a web UI with Dynamic Prompts in combinatorial mode."""
    memory = "" if report.peak_memory is None else f", peak GPU memory {report.peak_memory / 2**30:.1f} GiB"
    speed = f"{1 / report.seconds_per_step:.2f} steps/s, " if report.losses else "no step was left to do, "
    return (
        f"saved   {report.path}\n"
        f"speed   {speed}{seconds:.0f} s in all{memory}\n"
        f"prompt  {multiplier_template(report.path.stem, settings.data.scales)}"
    )

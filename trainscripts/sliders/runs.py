"""From settings to finished sliders: check all runs, tell the plan, train one after the other."""

import gc
import time

import torch

from sliders.dataset import ScaleFolders
from sliders.device import torch_device
from sliders.errors import InputError
from sliders.interrupts import Interrupts
from sliders.lock import locked
from sliders.plan import check_run, describe_run, disk_need_of, weightless_adaptors
from sliders.resources import check_disk, out_of_memory
from sliders.schema import Settings
from sliders.states import prune_states, states_of
from sliders.templates import multiplier_template
from sliders.trainer import Report, Trainer


def run_all(runs: list[Settings], dry_run: bool = False) -> list[Report]:
    """Every run is checked before the first one starts. With `dry_run` nothing is loaded or written."""
    checked = check_all(runs)
    if not dry_run:
        forget_replaced(runs)
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
    with locked(settings.run_dir):
        try:
            trainer = Trainer(settings, data)
            if settings.resume:
                trainer.resume()
            return trainer.run(interrupts)
        except torch.OutOfMemoryError as error:
            device = torch_device(settings.device)
            peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
            parameters = weightless_adaptors(settings).num_parameters()
            raise InputError(out_of_memory(settings, parameters, error, peak)) from error


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
    check_disk([disk_need_of(settings) for settings, _ in checked])
    return checked


def forget_replaced(runs: list[Settings]) -> None:
    """The states of runs that --overwrite replaces, of all before the first begins: so that the command which goes on
    after a stop, with --resume, finds none but this one's. Sliders stay until there is something in their place."""
    for settings in runs:
        if settings.overwrite and not settings.resume and states_of(settings):
            with locked(settings.run_dir):
                prune_states(settings, 0)
            if left := states_of(settings):
                raise InputError(
                    f"--overwrite: {min(left.values())} could not be removed: close what has it open, or choose another --name."
                )


def summary(settings: Settings, report: Report, seconds: float) -> str:
    """Speed, memory, and the prompt to paste into a web UI with Dynamic Prompts in combinatorial mode."""
    memory = "" if report.peak_memory is None else f", peak GPU memory {report.peak_memory / 2**30:.1f} GiB"
    speed = f"{1 / report.seconds_per_step:.2f} steps/s, " if report.losses else "no step was left to do, "
    return (
        f"saved   {report.path}\n"
        f"speed   {speed}{seconds:.0f} s in all{memory}\n"
        f"prompt  {multiplier_template(report.path.stem, settings.data.scales)}"
    )

"""From settings to finished sliders: check all runs, tell the plan, train one after the other."""

import gc
import time

import torch

from sliders.dataset import ScaleFolders
from sliders.errors import InputError
from sliders.plan import check_run, describe_run
from sliders.schema import Settings
from sliders.templates import multiplier_template
from sliders.trainer import Report, Trainer


def run_all(runs: list[Settings], dry_run: bool = False) -> list[Report]:
    """Every run is checked before the first one starts. With `dry_run` nothing is loaded or written."""
    checked = check_all(runs)
    reports = []
    for settings, data in checked:
        print(describe_run(settings, data), flush=True)
        if dry_run:
            continue
        began = time.perf_counter()
        report = Trainer(settings, data).run()
        reports.append(report)
        print(summary(settings, report, time.perf_counter() - began), flush=True)
        gc.collect()  # before the next model of a --stylecheck is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if dry_run:
        print("\ndry run: nothing was loaded or written")
    return reports


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
    return (
        f"saved   {report.path}\n"
        f"speed   {1 / report.seconds_per_step:.2f} steps/s, {seconds:.0f} s in all{memory}\n"
        f"prompt  {multiplier_template(report.path.stem, settings.data.scales)}"
    )

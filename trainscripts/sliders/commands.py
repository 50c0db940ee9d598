"""The commands, one function each, which takes the words after the script's name and, where it has several, the family's.

Flags and YAML are read before torch is imported, so `--help` and a mistyped key answer at once.
"""

import argparse
import contextlib
import io
from collections.abc import Iterable
from dataclasses import replace

from sliders.check.collect import known_at_once, with_torch
from sliders.check.findings import (
    AMPERE,
    NO_BFLOAT16,
    config_lines,
    first_lines,
    problem_lines,
    torch_lines,
    trial_lines,
)
from sliders.check.report import Report
from sliders.config.flags import Parser
from sliders.config.schema import Settings
from sliders.config.settings import load_settings, load_text_settings
from sliders.sample.settings import load_comparison_settings, load_sample_settings
from sliders.system.command import command
from sliders.system.progress import importing_libraries


@command
def train_on_images(argv: list[str], family: str) -> None:
    _train(*load_settings(argv, family))


@command
def train_on_prompts(argv: list[str], family: str) -> None:
    _train(*load_text_settings(argv, family))


@command
def sample(argv: list[str], family: str) -> None:
    settings = load_sample_settings(argv, family)
    with importing_libraries():
        from sliders.sample.ladder import make_ladder
        from sliders.sample.run import run

    if settings.ladder:
        print(make_ladder(settings).closing)
    else:
        print(f"page    {run(settings)}")


@command
def compare(argv: list[str]) -> None:
    settings = load_comparison_settings(argv)
    with importing_libraries():
        from sliders.sample.compare import compare

    print(f"page    {compare(settings)}")


@command
def check(argv: list[str]) -> None:
    parser = Parser(prog="check.py", description="Say what this machine can do, which settings fit, and what to do.")
    parser.add_argument("--device", default="0", help="of --test: a CUDA index, cpu or mps (default: 0)")
    parser.add_argument("--test", action="store_true", help="also train a few steps of the tiny model")
    flags = parser.parse_args(argv)
    report = known_at_once()
    _show(first_lines(report))
    report = with_torch(report)
    _show(torch_lines(report))
    if flags.test and report.torch and report.torch.version:
        report = _with_trial(report, flags.device)
        _show(trial_lines(report))
    _show([*config_lines(report), *problem_lines(report)])


def _with_trial(report: Report, device: str) -> Report:
    with importing_libraries():
        from sliders.check.trial import tried

    new = all(card.capability >= AMPERE for card in report.cards)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # what a training says
        return replace(report, trial=tried(device, "bfloat16" if new else NO_BFLOAT16))


def _show(lines: Iterable[str]) -> None:
    print(*lines, sep="\n", flush=True)


def _train(runs: list[Settings], flags: argparse.Namespace) -> None:
    with importing_libraries():
        from sliders.train.runs import run_all

    run_all(runs, dry_run=flags.dry_run)

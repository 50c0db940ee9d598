"""The commands, one function each, which takes the words after the script's name and, where it has several, the family's.

Flags and YAML are read before torch is imported, so `--help` and a mistyped key answer at once.
"""

import argparse

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
        from sliders.sample.run import run

    print(f"page    {run(settings)}")


@command
def compare(argv: list[str]) -> None:
    settings = load_comparison_settings(argv)
    with importing_libraries():
        from sliders.sample.compare import compare

    print(f"page    {compare(settings)}")


def _train(runs: list[Settings], flags: argparse.Namespace) -> None:
    with importing_libraries():
        from sliders.train.runs import run_all

    run_all(runs, dry_run=flags.dry_run)

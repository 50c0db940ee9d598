"""Train a concept slider for SDXL from folders of images, one folder per multiplier. `--help` lists the flags."""

import sys

from sliders.command import command
from sliders.settings import load_settings


@command
def main(argv: list[str]) -> None:
    runs, flags = load_settings(argv)
    # torch comes in only now: --help and a mistyped key answer at once
    from sliders.runs import run_all

    run_all(runs, dry_run=flags.dry_run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

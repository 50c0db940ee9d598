"""Train a concept slider for FLUX.2 [klein] 4B from folders of images, one folder per multiplier. `--help` lists the flags."""

import sys

from sliders.config.settings import load_settings
from sliders.system.command import command
from sliders.system.imports import quick_imports


@command
def main(argv: list[str]) -> None:
    runs, flags = load_settings(argv, family="flux2")
    # imports torch, which --help and a mistyped key need not wait for
    with quick_imports(runs[0].pretrained_model.name_or_path):
        from sliders.compute.device import wake

        wake(runs[0].device)
        from sliders.train.runs import run_all

    run_all(runs, dry_run=flags.dry_run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

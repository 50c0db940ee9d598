"""Show what a slider does: pictures at several multipliers with fixed seeds, on one page. `--help` lists the flags.

    uv run trainscripts/imagesliders/sample_slider-xl.py --model stabilityai/stable-diffusion-xl-base-1.0 \
      --slider models/…/…_last.safetensors --prompt 'a robe on a mannequin {<slider:0>|<slider:0.8>|<slider:2.7>}'
"""

import sys

from sliders.sample.settings import load_sample_settings
from sliders.system.command import command
from sliders.system.imports import quick_imports


@command
def main(argv: list[str]) -> None:
    settings = load_sample_settings(argv, family="sdxl")
    # imports torch, which --help and a mistyped flag need not wait for
    with quick_imports(settings.model.name_or_path):
        from sliders.compute.device import wake

        wake(settings.device)
        from sliders.sample.run import run

    print(f"page    {run(settings)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

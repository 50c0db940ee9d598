"""Show what a slider does: fixed seeds, several multipliers, one page to scrub through them. `--help` lists the flags.

    uv run trainscripts/imagesliders/sample_slider-xl.py --model stabilityai/stable-diffusion-xl-base-1.0 \
      --slider models/…/…_last.safetensors --prompt 'a robe on a mannequin {<slider:0>|<slider:0.8>|<slider:2.7>}'
"""

import sys

from sliders.sample.settings import load_sample_settings
from sliders.system.command import command


@command
def main(argv: list[str]) -> None:
    settings = load_sample_settings(argv)
    # torch comes in only now: --help and a mistyped flag answer at once
    from sliders.sample.run import run

    print(f"page    {run(settings)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Show several sliders side by side, under the same seeds. `--help` lists the flags.

    uv run trainscripts/imagesliders/compare_sliders.py A.safetensors B.safetensors --model MODEL --prompt "a robe" --card DIR

Writes a page with all pictures and, with `--card`, measures each slider and prints a table, the best calibration first.
"""

import sys

from sliders.sample.settings import load_comparison_settings
from sliders.system.command import command


@command
def main(argv: list[str]) -> None:
    settings = load_comparison_settings(argv)
    from sliders.sample.compare import compare  # imports torch, which --help and a mistyped flag need not wait for

    print(f"page    {compare(settings)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

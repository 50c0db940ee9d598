"""Show several sliders side by side, under the same seeds. `--help` lists the flags.

    uv run trainscripts/imagesliders/compare_sliders.py A.safetensors B.safetensors --model MODEL --prompt "a robe" --card DIR

Writes a page with all pictures and, with `--card`, measures each slider and prints a table, the best first.
"""

import sys

from sliders.sample.settings import load_comparison_settings
from sliders.system.command import command
from sliders.system.imports import quick_imports


@command
def main(argv: list[str]) -> None:
    settings = load_comparison_settings(argv)
    # imports torch, which --help and a mistyped flag need not wait for
    with quick_imports(settings.model.name_or_path):
        from sliders.compute.device import wake

        wake(settings.device)
        from sliders.sample.compare import compare

    print(f"page    {compare(settings)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

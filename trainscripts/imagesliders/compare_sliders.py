"""Show several sliders side by side, under the same seeds. `--help` lists the flags.

    uv run trainscripts/imagesliders/compare_sliders.py A.safetensors B.safetensors --model MODEL --prompt "a robe" --card DIR

Writes a page with all pictures and, with `--card`, measures each slider and prints a table, the best first.
"""

import sys

from sliders.commands import compare

if __name__ == "__main__":
    sys.exit(compare(sys.argv[1:]))

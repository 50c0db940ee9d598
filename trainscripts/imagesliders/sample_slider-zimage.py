"""Show what a slider for Z-Image does: pictures at several multipliers with fixed seeds, on one page.

`--help` lists the flags.

    uv run trainscripts/imagesliders/sample_slider-zimage.py --model Tongyi-MAI/Z-Image \
      --slider models/…/…_last.safetensors --prompt 'a robe on a mannequin {<slider:0>|<slider:0.8>|<slider:2.7>}'
"""

import sys

from sliders.commands import sample

if __name__ == "__main__":
    sys.exit(sample(sys.argv[1:], family="zimage"))

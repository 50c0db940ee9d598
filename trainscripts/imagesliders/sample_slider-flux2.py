"""Show what a slider for FLUX.2 [klein] 4B does: pictures at several multipliers with fixed seeds, on one page.

`--help` lists the flags.

    uv run trainscripts/imagesliders/sample_slider-flux2.py --model black-forest-labs/FLUX.2-klein-base-4B \
      --slider models/…/…_last.safetensors --prompt 'a robe on a mannequin {<slider:0>|<slider:0.8>|<slider:2.7>}'
"""

import sys

from sliders.commands import sample

if __name__ == "__main__":
    sys.exit(sample(sys.argv[1:], family="flux2"))

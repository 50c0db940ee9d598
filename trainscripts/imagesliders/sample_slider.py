"""Show what a slider for Stable Diffusion 1 or 2 does: pictures at several multipliers with fixed seeds, on one page.

`--help` lists the flags.

    uv run trainscripts/imagesliders/sample_slider.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 \
      --slider models/…/…_last.safetensors --prompt 'a robe on a mannequin {<slider:0>|<slider:0.8>|<slider:2.7>}'
"""

import sys

from sliders.commands import sample

if __name__ == "__main__":
    sys.exit(sample(sys.argv[1:], family="sd"))

"""Measure sliders trained on the shapes world: how far the picture is from what each multiplier promises.

    uv run trainscripts/shapesworld/measure.py models/size_alpha16.0_rank16_noxattn/size_alpha16.0_rank16_noxattn_last.safetensors

Prints calibration, spread, order and mess, beside the base model's, and writes them next to the slider as JSON and
as one PNG. With `--compare` several sliders stand side by side.
"""

import sys

from worlds.measure import main

from shapesworld.evaluate import SHAPES

if __name__ == "__main__":
    sys.exit(main(SHAPES, __doc__))

"""Checks the report card against the truth: what it reads from pictures beside what `world.measure` finds in them.

    uv run trainscripts/shapesworld/check_card.py --attribute size A.safetensors B.safetensors …

Prints for each slider its calibration error by the card and by measurement, and how well the readings of single pictures and
of the curve agree with the truth, all in units of the scale; then whether the card ranks the sliders as the truth does.
`--calibrated` does the same for each slider after convert_slider.py --calibrate has folded its factor in.
"""

import sys

from worlds.check_card import main

from shapesworld.evaluate import SHAPES

if __name__ == "__main__":
    sys.exit(main(SHAPES, __doc__))

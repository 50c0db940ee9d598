"""Measure sliders trained on the emoji world: how far the picture is from what each multiplier promises, and what else moved.

    uv run trainscripts/emojiworld/measure.py SLIDER.safetensors --attribute skin

Prints calibration, spread, order, selectivity and strangeness, beside the base model's, and writes them next to the slider as
JSON and as one PNG. With `--compare` several sliders stand side by side.
"""

import sys

from worlds.measure import main

from emojiworld.evaluate import EMOJI

if __name__ == "__main__":
    sys.exit(main(EMOJI, __doc__))

"""Checks the report card against the truth: what it reads from pictures beside what is measured with the true pictures.

    uv run trainscripts/emojiworld/check_card.py --attribute skin A.safetensors B.safetensors …

Prints for each slider its calibration error by the card and by measurement, and how well the readings of single pictures and
of the curve agree with the truth, all in units of the scale; then whether the card ranks the sliders as the truth does.
"""

import sys

from worlds.check_card import main

from emojiworld.evaluate import EMOJI

if __name__ == "__main__":
    sys.exit(main(EMOJI, __doc__))

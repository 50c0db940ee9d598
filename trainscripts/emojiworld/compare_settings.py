"""Train sliders with different settings on attributes and seeds, measure each, and print a table.

    uv run trainscripts/emojiworld/compare_settings.py --results out.jsonl --attributes skin --biases 0 auto --devices 0 --workers 6

Results are kept as they come, one line each: the same command again makes only the runs that are missing.
"""

import sys

from worlds.compare_settings import main

from emojiworld.evaluate import EMOJI

if __name__ == "__main__":
    sys.exit(main(EMOJI, __doc__))

"""Train sliders with different settings on different attributes and seeds, measure each, and print the table of README.md.

    uv run trainscripts/shapesworld/compare_settings.py --results results.jsonl --attributes size hue --biases 0 2 auto

On a GPU many sliders train at a time: `--devices 0 1 --workers 8`. Results are kept as they come, one line each: the
same command again makes only the runs that are missing.
"""

import sys

from worlds.compare_settings import main

from shapesworld.evaluate import SHAPES

if __name__ == "__main__":
    sys.exit(main(SHAPES, __doc__))

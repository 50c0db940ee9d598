"""Says what a run is doing while nothing else can be seen."""

import sys

from tqdm import tqdm


def now(doing: str) -> None:
    """Prints a line when a phase without a progress bar begins that may take more than two seconds.

    doing: such as `loading the model`. Does not disturb a progress bar.
    """
    tqdm.write(f"now     {doing}")
    sys.stdout.flush()

"""Says what a run is doing while nothing else can be seen."""

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def now(doing: str) -> None:
    """Prints a line when a phase without a progress bar begins that may take more than two seconds.

    doing: such as `loading the model`. Does not disturb a progress bar.
    """
    tqdm.write(f"now     {doing}")
    sys.stdout.flush()


@contextmanager
def importing_libraries() -> Iterator[None]:
    """Says that PyTorch and the model libraries are imported in its block, unless they have been.

    Without garbage collection: modules are no garbage, and looking for it takes a quarter of the time.
    """
    if "torch" not in sys.modules:
        now("importing PyTorch and the model libraries")
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yields `items`, pictures of which there are `total`, and shows how many are done; below another bar only meanwhile."""
    return iter(tqdm(items, what, total=total, unit="img", leave=None))

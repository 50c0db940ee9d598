"""A progress bar for what may take a while."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yields `items`, pictures of which there are `total`, and shows how many are done; below another bar only meanwhile."""
    return iter(tqdm(items, what, total=total, unit="img", leave=None))

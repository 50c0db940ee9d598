"""Files that appear whole under their name, or not at all, also when the power fails."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes the name at the end, or is gone if anything is raised.

    Bytes reach the disk before the name does, and the name before this returns.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are synced with their file system
            _sync(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, stem: str) -> None:
    """What a killed process of the same run was writing; nobody else may be writing there meanwhile."""
    for path in folder.iterdir():
        if path.name.startswith(stem) and path.name.endswith(TEMPORARY):
            path.unlink()

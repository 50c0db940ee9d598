"""Files that appear whole under their name, or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sliders.errors import InputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes the name at the end, or is gone if anything is raised."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: Path, flag: str) -> None:
    """Raises InputError if `path` is no folder that can be written to, nor one that can be made."""
    parent = path
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{flag}: {parent} is a file, not a folder: choose another {flag}.")
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions alone would mislead root, and on odd file systems
            pass
    except OSError as error:
        raise InputError(f"{flag}: {parent} cannot be written to: choose another {flag}.") from error

"""One run per folder: a lock that the operating system drops when its process ends, however it ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sliders.errors import InputError
from sliders.files import remove

if os.name == "posix":
    import fcntl
else:
    import msvcrt

LOCK = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # by somebody else; Windows gives one of the last


def check_unlocked(folder: Path) -> None:
    """Raises InputError while another process trains into `folder`. Writes nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return  # no such file: nobody is there, or whoever was has ended well
    try:
        _take(descriptor, folder)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder`, and keeps other processes out of it meanwhile. Folders that it made and nobody filled are gone
    afterwards. Raises InputError if another process is there."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _open(folder)
        try:
            yield
        finally:
            if os.name == "posix":
                remove(folder / LOCK)  # while it is held: see _open
            os.close(descriptor)
            if os.name != "posix":
                remove(folder / LOCK)
    finally:
        for path in made:
            try:
                path.rmdir()
            except OSError:
                break  # something is in it


def _open(folder: Path) -> int:
    """Whoever leaves removes the file, so what was locked may not be what lies there now: then once more."""
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor, folder)
            if os.name != "posix" or os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        if os.name == "posix":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno not in HELD:
            print(f"note: {folder}: this file system knows no locks ({error.strerror}): start no second run into it.")
            return
        raise InputError(
            f"{folder}: another process is training into it: wait for it, stop it, or choose another --name."
        ) from error

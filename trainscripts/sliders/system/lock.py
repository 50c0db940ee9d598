"""One run per folder: a file lock that the operating system releases when the process ends, even if it is killed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from sliders.system.errors import InputError
from sliders.system.launch import launch

LOCK = ".lock"
OCCUPIED = "{}: another process is training into it: wait for it, stop it, or choose another --name."


def check_unlocked(folder: Path) -> None:
    """Raises InputError if another run is training into `folder`. Creates no files.

    Of a run's several processes only the first looks: looking takes the lock for a moment, in which another would find it.
    """
    if launch().rank > 0:
        return
    # OSError: there is no lock file, or the file system has no locks; `locked` reports the latter
    with suppress(OSError), (folder / LOCK).open("rb+") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            raise InputError(OCCUPIED.format(folder))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates `folder` and locks it. On exit, folders that this call created and that are still empty are removed.

    Raises InputError if another process is training into it, OSError if it cannot be created or written to.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # filelock's fallback for file systems without locks would outlive a killed run and block its resumption
    lock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
    with ExitStack() as on_exit:
        on_exit.callback(_remove_empty, created)
        on_exit.callback(lock.release)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(OCCUPIED.format(folder)) from error
        except OSError as error:
            if error.filename:  # the lock file could not be opened; errors of the lock itself name no file
                raise
            print(f"note: {folder}: this file system has no locks ({error.strerror}): start no second run into it.")
        on_exit.callback(_remove_lock_file, folder / LOCK)
        yield


def _remove_lock_file(path: Path) -> None:
    with suppress(OSError):  # on Windows filelock removes it after the release (not verified on Windows)
        path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # the first that is not empty ends it: those after it contain it
        for path in folders:
            path.rmdir()

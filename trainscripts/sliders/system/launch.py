"""Which of several processes this one is, as `accelerate launch` and torchrun say in the environment. Imports no torch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sliders.system.errors import InputError

OWN = "found by this process, after all had started"  # note on an error that a process other than the first may print


@dataclass(frozen=True)
class Launch:
    """Alone, a process is the first of one."""

    rank: int  # among all processes
    count: int
    local_rank: int  # among those on this machine
    local_count: int


def launch() -> Launch:
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    return Launch(*(int(os.environ.get(name, default)) for name, default in names.items()))


@contextmanager
def only_errors() -> Iterator[None]:
    """In every process but the first, drops what the block prints, libraries included.

    Errors in the user's input are found by all of them alike, so that only the first need print those.
    """
    if launch().rank == 0:
        yield
        return
    sys.stdout.flush()
    kept, nowhere = (os.dup(1), os.dup(2)), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        yield
    except (InputError, OSError) as error:
        if OWN not in getattr(error, "__notes__", ()):
            raise SystemExit(2) from None
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, stream)

"""Makes PyTorch's threads share the processors with other programs. It takes effect only before torch is imported."""

import math
import os
from pathlib import Path

from sliders.system.launch import launch

CGROUP = Path("/sys/fs/cgroup")  # where Linux containers find their limits


def share_processors() -> None:
    """Sets OpenMP's environment variables, except those that the user has set. Several processes get equal shares.

    By default, threads that wait for the others occupy their processors, also against the one that they wait for. Beside
    other busy programs a step then takes many times as long as on one thread.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quota = processor_quota()
    available, processes = available_processors(), launch().local_count
    share = min(quota or available, available) // processes
    if share < available:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


def available_processors() -> int:
    """The number of processors that this process may run on, without regard to a container's quota."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_quota(cgroup: Path = CGROUP) -> int | None:
    """How many processors' time a container may use, rounded up, at least 1. None without a limit. OpenMP ignores it."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return max(1, math.ceil(share)) if share > 0 else None  # version 1 writes -1 for no limit

"""How many threads PyTorch may start. It takes effect only before torch is imported."""

import math
import os
from pathlib import Path

from sliders.system.launch import launch

CGROUP = Path("/sys/fs/cgroup")  # where Linux containers find their limits


def share_processors() -> None:
    """Limits the threads of PyTorch, unless the user has, to a container's quota, in equal shares for several processes.

    OpenMP would start one for each processor, and those that wait for the others would use up the quota.
    """
    available = available_processors()
    share = min(processor_quota() or available, available) // launch().local_count
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

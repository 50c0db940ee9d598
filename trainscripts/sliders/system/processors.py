"""Makes PyTorch's threads share the processors with other programs. It takes effect only before torch is imported."""

import math
import os
import time
from pathlib import Path

from sliders.system.launch import launch

CGROUP = Path("/sys/fs/cgroup")  # where Linux containers find their limits
PROC = Path("/proc")
COUNTS = 5


def share_processors() -> None:
    """Sets OpenMP's environment variables, except those that the user has set. Several processes get equal shares.

    By default, threads that wait for the others occupy their processors, also against the one that they wait for. Beside
    other busy programs a step then takes many times as long as on one thread. On an idle machine it is the other way
    round: waking a thread that sleeps takes longer than most operations of a narrow model.
    """
    quota = processor_quota()
    available, processes = available_processors(), launch().local_count
    if "OMP_WAIT_POLICY" not in os.environ and running_programs() >= available / 2:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    share = min(quota or available, available) // processes
    if share < available:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


def available_processors() -> int:
    """The number of processors that this process may run on, without regard to a container's quota."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def running_programs(proc: Path = PROC) -> int:
    """How many threads of other programs are running or waiting for a processor at this moment; 0 if not on Linux.

    The load average would also count those that have just ended. The least of a few counts leaves out short work.
    """
    others = math.inf
    for count in range(COUNTS):
        if count:
            time.sleep(0.01)
        try:
            running = int((proc / "loadavg").read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return 0
        others = min(others, max(0, running - 1))  # without this one
        if others == 0:  # on an idle machine nothing waits
            break
    return int(others)


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

"""Kills one of several processes that train together at random moments, again and again, and checks what they leave.

    python tests/campaigns/kill_processes.py --count 100

All processes resume where the last ones were ended. The others must end by themselves within a minute.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from processes import Training

LONGEST = 60.0  # seconds that the other processes may take to end


def start_processes(argv: list[str], folder: Path, count: int, prepare=None) -> list[Training]:
    """The trainings of all processes, with the environment that torchrun gives them, but no launcher that ends them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **size}
    ranks = ({**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(count))
    return [Training(argv, folder / f"log{rank['RANK']}", rank, prepare) for rank in ranks]


def main(kills: int, seed: int, folder: Path, count: int = 2) -> dict[str, float]:
    """Raises AssertionError if anything was lost. Returns counts of what happened."""
    from campaigns.kill import look, newest_step, until_killed
    from conftest import make_scale_folders, write_experiment

    rng = random.Random(seed)
    data = make_scale_folders(folder / "data")
    argv = until_killed(write_experiment(folder, data=data, save={"per_steps": 1}), kills)
    seen = {"kills": 0, "of the first": 0, "before any step": 0, "steps": 0, "longest": 0.0}
    known: dict[Path, int] = {}
    for number in range(kills):
        trainings = start_processes(argv, folder, count)
        if number % 4 == 3:
            time.sleep(rng.uniform(0, 4))  # while they start
        else:
            wanted = seen["steps"] + rng.randint(0, 2)
            trainings[0].until_it_trains().until(lambda wanted=wanted: newest_step(folder) >= wanted)
            time.sleep(rng.uniform(0, 0.5))
        killed = rng.randrange(count)
        trainings[killed].signal(signal.SIGKILL).status()
        began = time.monotonic()
        others = [t for t in trainings if t is not trainings[killed]]
        statuses = [t.status(LONGEST) for t in others]
        seen["longest"] = max(seen["longest"], round(time.monotonic() - began, 1))
        assert all(statuses), "a process went on alone"
        newest = look(folder, known)
        assert newest >= seen["steps"], f"{newest} steps after a kill, {seen['steps']} before"
        seen["kills"] += 1
        seen["of the first"] += killed == 0
        seen["before any step"] += newest == seen["steps"]
        seen["steps"] = newest
        if seen["kills"] % 10 == 0:
            print(seen, file=sys.stderr, flush=True)
    end = [*argv, "--iterations", str(seen["steps"] + 2)]
    assert [t.status() for t in start_processes(end, folder, count)] == [0] * count
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = Path(tempfile.mkdtemp())
    started = time.monotonic()
    found = main(arguments.count, arguments.seed, place, arguments.processes)
    print(found, f"in {time.monotonic() - started:.0f} s; none lost")
    shutil.rmtree(place)

"""Kills a run at random moments, again and again, and checks its files after each kill.

    python tests/campaigns/kill.py --count 200

Each process resumes where the last one was killed. The last one may finish, and its slider must be bit-identical to that of
a run that was never killed.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from processes import Training
from safetensors import safe_open

CLOCK = {"SOURCE_DATE_EPOCH": "1700000000"}
STARTING = 2.0  # seconds, within which a process that has not begun its first step is killed


def until_killed(argv: list[str], kills: int) -> list[str]:
    """The command line with more steps than so many kills let pass, but with few enough that any disk has room for them."""
    return [*argv, "--iterations", str(100 + 20 * kills), "--resume"]


def look(folder: Path, known: dict[Path, int]) -> int:
    """Asserts that all sliders and checkpoints are complete. Returns the newest checkpoint's step, or 0 without any.

    known: {slider: modification time} of the sliders that were checked before.
    """
    from sliders.formats.checkpoint import SUFFIX, read_checkpoint

    for path in folder.rglob("*.safetensors"):
        written = path.stat().st_mtime_ns
        if known.get(path) == written:
            continue
        known[path] = written
        with safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 - not a dict
        assert len(tensors) == 3 * 133 and all(t.isfinite().all() for t in tensors), path
    checkpoints = {path: read_checkpoint(path) for path in folder.rglob(f"*{SUFFIX}")}
    damaged = [path for path, checkpoint in checkpoints.items() if checkpoint is None]
    assert not damaged, f"damaged: {damaged}"
    return max((checkpoint.step for checkpoint in checkpoints.values()), default=0)


def newest_step(folder: Path) -> int:
    """The newest checkpoint's step, judged by file names: the file may be damaged, or gone by now."""
    return max((int(p.stem.rpartition("_")[2].removesuffix("steps")) for p in folder.rglob("*.state")), default=0)


def main(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Raises AssertionError if anything was lost. Returns counts of what happened."""
    from conftest import make_scale_folders, write_experiment

    rng = random.Random(seed)
    for name in ("killed", "straight"):
        (folder / name).mkdir()
    data = make_scale_folders(folder / "data")
    save = {"per_steps": 1}
    argv, straight = (write_experiment(folder / n, data=data, save=save) for n in ("killed", "straight"))
    endless = until_killed(argv, count)
    seen = {"kills": 0, "before any step": 0, "while writing": 0, "steps": 0}
    known: dict[Path, int] = {}
    pace = 1.0  # seconds of a step with its save
    for number in range(count):
        training = Training(endless, folder / "log", CLOCK)
        if number % 5 == 4:
            training.until_it_says("slider  ")
            time.sleep(rng.uniform(0, STARTING))
        else:
            training.until_it_trains()
            begun, steps = time.monotonic(), rng.randint(0, 2)
            training.until(lambda wanted=seen["steps"] + steps: newest_step(folder / "killed") >= wanted)
            if steps:
                pace = (time.monotonic() - begun) / steps
            time.sleep(rng.uniform(0, 1.5 * pace))
        status = training.signal(signal.SIGKILL).status()
        assert status == -signal.SIGKILL, training.output
        newest = look(folder / "killed", known)
        assert newest >= seen["steps"], f"{newest} steps after a kill, {seen['steps']} before"
        seen["kills"] += 1
        seen["before any step"] += newest == seen["steps"]
        seen["while writing"] += any((folder / "killed").rglob("*.tmp"))
        seen["steps"] = newest
        if seen["kills"] % 20 == 0:
            print(seen, file=sys.stderr, flush=True)
    end = ["--iterations", str(seen["steps"] + 2)]
    finished = Training([*argv, *end, "--resume"], folder / "log", CLOCK)
    other = Training([*straight, *end], folder / "straight.log", CLOCK)
    assert (finished.status(3600), other.status(3600)) == (0, 0), finished.output
    sliders = len(list((folder / "killed").rglob("*steps.safetensors")))
    assert sliders == seen["steps"] + 1, f"{sliders} sliders of {seen['steps'] + 1} steps"
    files = [next((folder / n).rglob("*_last.safetensors")).read_bytes() for n in ("killed", "straight")]
    assert files[0] == files[1], "the killed run's slider differs from the straight one's"
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = Path(tempfile.mkdtemp())
    began = time.monotonic()
    print(main(arguments.count, arguments.seed, place), f"in {time.monotonic() - began:.0f} s; none lost")
    shutil.rmtree(place)

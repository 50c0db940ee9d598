"""Trains the demo for a long time, with a checkpoint every 50 steps, and checks that memory and open files do not grow.

    python tests/campaigns/soak.py --count 3000

At the end, resident memory may be at most 3 % above that at step 200, and no more files may be open. Linux only.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml
from conftest import ROOT
from processes import Training

DEMO = Path("trainscripts", "imagesliders", "data", "config-xl-demo.yaml")
EVERY, SETTLED, GROWTH = 50, 200, 0.03
SPARE = 1000  # further steps, so that the run is still there when it is measured
COUNTS = 30  # of open files at each checkpoint


def measure(pid: int) -> tuple[float, int]:
    """Resident memory in MiB and number of open files of a process."""
    resident = Path(f"/proc/{pid}/status").read_text(encoding="ascii").partition("VmRSS:")[2].split()[0]
    return int(resident) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def demo(folder: Path, count: int, model: str | None, root: Path = ROOT) -> list[str]:
    """Command line of the demo of the checkout `root`, writing to `folder`, without pictures."""
    config = yaml.safe_load((root / DEMO).read_text(encoding="utf-8"))
    config["prompts_file"] = str(root / config["prompts_file"])
    config["pretrained_model"]["name_or_path"] = model or str(root / config["pretrained_model"]["name_or_path"])
    config["save"] = {"path": str(folder / "models"), "per_steps": EVERY}
    config.pop("preview")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return [
        "--config_file", str(folder / "config.yaml"), "--folder_main", str(root / "datasets" / "shapes_size"),
        "--folders", "small, base, large, huge", "--scales", "0.67, 1, 1.3, 2.0", "--name", "size", "--rank", "16",
        "--alpha", "16", "--device", "cpu", "--iterations", str(count),
    ]  # fmt: skip


def main(count: int, folder: Path, settled: int = SETTLED, model: str | None = None) -> list[tuple[int, float, int]]:
    """Returns (step, resident MiB, open files) at each checkpoint. Raises AssertionError if they grow after `settled`."""
    training = Training(demo(folder, count + SPARE, model), folder / "log")
    seen = []
    for step in range(EVERY, count, EVERY):
        training.until(lambda step=step: list(folder.rglob(f"*_{step}steps.json")), seconds=3600)  # a save's last file
        found: list[tuple[float, int]] = []
        # The least of several counts, because the folder may still be open for its sync
        training.until(lambda found=found: found.append(measure(training.process.pid)) or len(found) == COUNTS)
        seen.append((step, found[-1][0], min(files for _, files in found)))
    assert training.signal(signal.SIGTERM).status() == 143, training.output
    first, last = next(m for m in seen if m[0] >= settled), seen[-1]
    assert last[1] <= first[1] * (1 + GROWTH), seen
    assert last[2] <= first[2], seen
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--model", help="instead of the demo's, for example tiny")
    arguments = parser.parse_args()
    place, began = Path(tempfile.mkdtemp()), time.monotonic()
    for step, resident, files in main(arguments.count, place, model=arguments.model):
        print(f"step {step:5}  {resident:7.1f} MiB  {files} files")
    print(f"{arguments.count} steps in {time.monotonic() - began:.0f} s")
    shutil.rmtree(place)

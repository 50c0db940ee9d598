"""Resumes runs that another checkout began, and checks that they end with its sliders.

    python tests/campaigns/resume_old.py --root ../before

The checkout `--root` trains the configurations of same_sliders.py for 12 steps, which leaves checkpoints of steps 6 and 12
and the slider of an uninterrupted run. Everything of later steps is removed, as if the run had been killed after step 6;
this checkout resumes it, and its slider must have the same `sshs_model_hash`. Prints the table of the resumed sliders. The
exit status is 1 if a row differs; those rows are named on stderr.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from campaigns import same_sliders
from campaigns.same_sliders import CONFIGURATIONS, HALF, STEPS, differing, read_table, table
from conftest import ROOT


def train_elsewhere(root: Path, folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """{configuration: hash} of the checkout `root`, in a process of its own: one process can import only one package."""
    only = [word for name in names for word in ("--only", name)]
    command = [sys.executable, same_sliders.__file__, "--root", str(root), "--folder", str(folder), *only]
    return read_table(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def forget_the_second_half(folder: Path) -> dict[Path, int]:
    """Removes what runs in `folder` wrote after step 6. Returns {checkpoint: modification time} of those of step 6."""
    for path in (*folder.rglob(f"*_{STEPS}steps.*"), *folder.rglob("*_last.*")):
        path.unlink()
    return {path: path.stat().st_mtime_ns for path in folder.rglob(f"*_{HALF}steps.state")}


def main(root: Path, folder: Path, names=tuple(CONFIGURATIONS)) -> tuple[dict[str, str], list[str]]:
    """Returns {configuration: hash} of the resumed runs, and the names of those that differ from uninterrupted ones.

    Raises AssertionError if a run began again instead, for then it writes the checkpoint of step 6 once more.
    """
    straight = train_elsewhere(root, folder, names)
    checkpoints = forget_the_second_half(folder)
    assert len(checkpoints) == len(names), f"{len(checkpoints)} checkpoints of {len(names)} runs"
    resumed = same_sliders.main(ROOT, folder, names, resume=True)
    again = [path for path, written in checkpoints.items() if path.stat().st_mtime_ns != written]
    assert not again, f"written again, not resumed from: {again}"
    return resumed, differing(straight, resumed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the checkout that begins the runs")
    parser.add_argument(
        "--only", action="append", choices=CONFIGURATIONS, metavar="CONFIGURATION", help="can be repeated"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        chosen = tuple(arguments.only or CONFIGURATIONS)
        hashes, wrong = main(arguments.root.resolve(), Path(place).resolve(), chosen)
    print(table(hashes), end="")
    for row in wrong:
        print(f"differs: {row}", file=sys.stderr)
    sys.exit(1 if wrong else 0)

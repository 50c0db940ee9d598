"""Train a concept slider for SDXL from folders of images, one folder per multiplier. `--help` lists the flags."""

import re
import shlex
import sys

from sliders.config.settings import load_settings
from sliders.system.command import command
from sliders.system.signals import Stopped


@command
def main(argv: list[str]) -> int:
    runs, flags = load_settings(argv)
    # torch comes in only now: --help and a mistyped key answer at once
    from sliders.train.runs import run_all

    try:
        run_all(runs, dry_run=flags.dry_run)
    except Stopped as stopped:
        print(f"stopped by {stopped.name}; go on with\n  {resume_command(argv)}", file=sys.stderr)
        return stopped.status
    return 0


def resume_command(argv: list[str]) -> str:
    """`--overwrite` stays: what it replaces, in later runs of a --stylecheck too, is not done yet."""
    script = sys.argv[0] if __name__ == "__main__" else __file__
    words = [script, *(w for w in argv if w != "--resume"), "--resume"]
    if sys.platform == "win32":  # where a plain `uv run` would bring back the PyTorch without CUDA
        return " ".join(for_powershell(w) for w in ["uv", "run", "--no-sync", *words])
    return shlex.join(["uv", "run", *words])


def for_powershell(word: str) -> str:
    """As it is, or in quotes within which nothing has a meaning."""
    if re.fullmatch(r"[\w.:\\/=+-]+", word):
        return word
    return "'" + word.replace("'", "''") + "'"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

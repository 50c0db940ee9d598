"""Train a concept slider for SDXL from folders of images, one folder per multiplier. `--help` lists the flags."""

import re
import shlex
import sys

from sliders.config.settings import load_settings
from sliders.system.command import command
from sliders.system.signals import Stopped


@command
def main(argv: list[str]) -> int:
    runs, flags = load_settings(argv, family="sdxl")
    # imports torch, which --help and a mistyped key need not wait for
    from sliders.train.runs import run_all

    try:
        run_all(runs, dry_run=flags.dry_run)
    except Stopped as stopped:
        print(f"stopped by {stopped.name}; continue with\n  {resume_command(argv)}", file=sys.stderr)
        return stopped.status
    return 0


def resume_command(argv: list[str]) -> str:
    """The command that resumes this run. Keeps `--overwrite`: later runs of a --stylecheck may still have files to replace."""
    script = sys.argv[0] if __name__ == "__main__" else __file__
    words = [script, *(w for w in argv if w != "--resume"), "--resume"]
    if sys.platform == "win32":  # not verified on Windows: `uv run` alone would reinstall PyTorch without CUDA
        return " ".join(for_powershell(w) for w in ["uv", "run", "--no-sync", *words])
    return shlex.join(["uv", "run", *words])


def for_powershell(word: str) -> str:
    """The word, in single quotes if PowerShell could interpret it. Not verified on Windows."""
    if re.fullmatch(r"[\w.:\\/=+-]+", word):
        return word
    return "'" + word.replace("'", "''") + "'"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

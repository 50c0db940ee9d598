"""Runs the commands' scripts in this process, as `python SCRIPT` would in one of its own."""

import runpy
import sys
from pathlib import Path


def run_script(path: Path, argv: list[str]) -> int:
    """Exit status of a script with these arguments."""
    before, sys.argv = sys.argv, [str(path), *argv]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    raise AssertionError(f"{path} ended without an exit status")

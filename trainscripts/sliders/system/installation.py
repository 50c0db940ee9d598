"""Which command installs a package that is missing, and which runs a script."""

import sys


def how_to_install(module: str, extra: str = "") -> str:
    """The command that installs `module`. `extra`: the optional dependency group in pyproject.toml that contains it.

    Windows (not verified there) installs PyTorch with `uv pip`, which `uv run --extra` would undo.
    """
    if extra and sys.platform != "win32":
        return f"start with `uv run --extra {extra} …`"
    return f"once, `uv pip install {module.partition('.')[0].replace('_', '-')}`"


def how_to_run(script: str) -> str:
    """The command that runs a script for image sliders. On Windows `uv run` alone would replace PyTorch by its standard build."""
    sync = " --no-sync" if sys.platform == "win32" else ""
    return f"uv run{sync} trainscripts/imagesliders/{script}"

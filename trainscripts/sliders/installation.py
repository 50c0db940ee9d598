"""What this machine lacks, and the command that brings it, which on Windows is another one."""

import sys

import torch


def how_to_install(module: str, extra: str = "") -> str:
    """What to do about a missing `module`. `extra`: the one of pyproject.toml that brings it, if any.

    Windows gets its PyTorch by `uv pip`, which `uv run --extra` would undo, and starts with `--no-sync`, by which an extra
    installs nothing.
    """
    if extra and sys.platform != "win32":
        return f"start with `uv run --extra {extra} …`"
    return f"once, `uv pip install {module.partition('.')[0].replace('_', '-')}`"


def why_no_gpu(work: str, full_size: bool) -> str:
    """For a machine on which PyTorch finds no CUDA GPU. `work`: what the CPU does instead, as in "trains"."""
    if _cannot_use_any():
        return how_to_get_gpu()
    return f"no CUDA GPU was found, so the CPU {work}" + (": for SDXL that is far too slow." if full_size else ".")


def how_to_get_gpu() -> str:
    """What to do on such a machine, where only a GPU will do."""
    if not _cannot_use_any():
        return "no CUDA GPU was found: see that `nvidia-smi` lists one."
    version = torch.__version__.partition("+")[0]
    return (
        "this PyTorch cannot use a GPU, as Windows' standard build cannot: once, `uv pip install --torch-backend=auto "
        f"--reinstall-package torch torch=={version}`, then start with `uv run --no-sync …`."
    )


def _cannot_use_any() -> bool:
    return sys.platform == "win32" and torch.version.cuda is None

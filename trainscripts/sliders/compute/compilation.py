"""`other.torch_compile`: compiled where it stands, so that no module is renamed."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from torch import nn

from sliders.compute.fusion import triton_problem
from sliders.system.errors import InputError

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
RECOMPILE_LIMIT = 64  # the ResNets alone have more shapes than torch's default of 8 allows before it gives up


def check_compilation(extent: str, device: str) -> None:
    """Raises InputError where what PyTorch's compiler builds its kernels with is missing. `device`: as torch calls it."""
    if extent == "off":
        return
    if device.startswith("cuda"):
        problem, remedy = triton_problem(device), "see that Triton, a C compiler such as gcc"
    else:
        problem, remedy = _cpp_problem() if device == "cpu" else None, "see that a C++ compiler such as g++"
    if problem is not None:
        raise InputError(
            f"other.torch_compile: {extent} cannot build kernels for {device} ({problem}): {remedy} and Python's headers are "
            "installed, or set it to off."
        )


def _cpp_problem() -> str | None:
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return f"{compiler} was not found"
    folders = {
        Path(sysconfig.get_path("include", scheme)) for scheme in ("posix_prefix", sysconfig.get_default_scheme())
    }
    if not any((folder / "Python.h").exists() for folder in folders):
        return "Python.h was not found"
    return None


def compile_unet(unet: nn.Module, extent: str, backend: str = "inductor") -> int:
    """`extent`: regional compiles each of the repeated blocks, full the UNet as one, off nothing; returns how many
    pieces that makes. Costs minutes at the first step, saves at every one."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    blocks = [m for m in unet.modules() if type(m).__name__ in BLOCKS]
    pieces = {"off": [], "regional": blocks, "full": [unet]}[extent]
    for piece in pieces:
        piece.compile(backend=backend)
    return len(pieces)

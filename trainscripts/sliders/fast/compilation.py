"""`other.torch_compile`: compiles modules in place, so that none is wrapped or renamed."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from torch import nn

from sliders.fast.kernel_support import triton_problem
from sliders.system.errors import InputError

RECOMPILE_LIMIT = 64  # at torch's default of 8 it would give up: the ResNets alone come in more shapes


def check_compilation(extent: str, device: str) -> None:
    """Raises InputError if something that PyTorch's compiler needs is missing.

    extent: `other.torch_compile`. device: as torch names it.
    """
    if extent == "off":
        return
    if device.startswith("cuda"):
        problem, remedy = triton_problem(device), "Triton, a C compiler such as gcc"
    else:
        problem, remedy = _cpp_problem() if device == "cpu" else None, "a C++ compiler such as g++"
    if problem is not None:
        raise InputError(
            f"other.torch_compile: {extent} cannot build kernels for {device} ({problem}): install {remedy} and Python's "
            "headers, or set it to off."
        )


def _cpp_problem() -> str | None:
    if sys.platform != "linux":
        return None  # not verified on Windows or macOS, where the compiler has another name
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"{compiler} was not found"
    # Debian's default scheme is posix_local, but its headers are where posix_prefix says.
    schemes = ("posix_prefix", sysconfig.get_default_scheme())
    if not any(Path(sysconfig.get_path("include", scheme), "Python.h").exists() for scheme in schemes):
        return "Python.h was not found"
    return None


def compile_denoiser(denoiser: nn.Module, extent: str, blocks: tuple[str, ...], backend: str = "inductor") -> int:
    """Returns the number of compiled pieces: regional compiles each module of the classes `blocks`, full all at once, off nothing.

    Compilation takes minutes, in the first training step.
    """
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    repeated = [module for module in denoiser.modules() if type(module).__name__ in blocks]
    pieces = {"off": [], "regional": repeated, "full": [denoiser]}[extent]
    for piece in pieces:
        piece.compile(backend=backend)
    return len(pieces)

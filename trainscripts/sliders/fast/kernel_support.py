"""Whether this project's Triton kernels run on a GPU."""

import importlib
import importlib.util
import pkgutil
import sys
from functools import cache

import torch

from sliders.system.errors import first_line
from sliders.system.installation import how_to_install

AMPERE = (8, 0)  # compute capability


@cache
def can_fuse(device: str) -> bool:
    """Whether the kernels run on `device`, as torch names it. If a GPU cannot run them, prints the reason once."""
    if not device.startswith("cuda"):
        return False
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"  # not verified on Windows
        problem, remedy = "Triton is not installed", how_to_install(package)
    else:
        problem, remedy = triton_problem(device), "install a C compiler such as gcc, and Python's headers"
    if problem is not None:
        print(
            f"note: this project's kernels cannot be built here ({problem}): {remedy}; this goes on with PyTorch's "
            "kernels, more slowly and with more memory."
        )
    return problem is None


@cache
def can_multiply(device: str) -> bool:
    """Whether those kernels run on `device` that multiply matrices: they need bfloat16 products, which came with Ampere."""
    return can_fuse(device) and torch.cuda.get_device_capability(device) >= AMPERE


@cache
def own_kernels() -> frozenset[str]:
    """Names of the functions in `kernels` that Triton compiles, under which a profiler lists those that run. Imports Triton."""
    from triton.runtime import KernelInterface

    from sliders.fast import kernels

    files = [
        importlib.import_module(f"{kernels.__name__}.{file.name}") for file in pkgutil.iter_modules(kernels.__path__)
    ]
    return frozenset(f.__name__ for file in files for f in vars(file).values() if isinstance(f, KernelInterface))


@cache
def triton_problem(device: str) -> str | None:
    """The reason why Triton cannot run kernels on a GPU, or None if it can.

    Runs one to find out: before its first kernel, Triton compiles a part of itself, with a C compiler and Python.h.
    """
    try:
        from sliders.fast import kernels

        with torch.cuda.device(device):
            kernels.GEGLU.apply(torch.zeros(1, 2, device=device))
            torch.cuda.synchronize()
    except Exception as error:  # imports, compilers, linkers and drivers all raise their own
        return first_line(error).rstrip(".")
    return None

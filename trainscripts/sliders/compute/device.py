"""Names of devices and precisions → what torch calls them."""

import sys

import torch

from sliders.system.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_device(name: str) -> str:
    """`--device` → what torch calls it; a machine without any GPU trains on its CPU. Raises InputError for what is not there."""
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device: mps is not available on this machine: use cpu or a CUDA index.")
    if not name.isdigit():
        return name
    count = torch.cuda.device_count()
    if count == 0:
        return "cpu"
    if int(name) >= count:
        raise InputError(
            f"--device: {name} is not there, this machine has {count} GPU(s): use 0{f' to {count - 1}' if count > 1 else ''}."
        )
    return f"cuda:{name}"


def misses_gpu(name: str) -> bool:
    """`--device` asks for a CUDA GPU, and there is none."""
    return name.isdigit() and torch.cuda.device_count() == 0


def use_device(device: str) -> None:
    """Make a GPU the current one: Triton's kernels, streams and graphs use no other. `device`: as torch calls it."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


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

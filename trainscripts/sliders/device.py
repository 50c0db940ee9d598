"""Names of devices and precisions → what torch calls them."""

import torch

from sliders.errors import InputError

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


def use_device(name: str) -> str:
    """`torch_device`, and a GPU becomes the current one: Triton's kernels, streams and graphs go to no other."""
    device = torch_device(name)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    return device

"""Devices and precisions: from the names in flags and settings to torch's."""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sliders.system.errors import InputError
from sliders.system.installation import how_to_run
from sliders.system.launch import launch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WHY = f"`{how_to_run('check.py')}` says why, and what to do."
UPLOADED = 2**25  # bytes at once, from a page-locked buffer


def torch_device(name: str) -> str:
    """Returns torch's name for the value of `--device`; for an index on a machine without GPUs, `cpu`.

    With several processes, 0 stands for all GPUs: each process takes its own, or shares one if there are too few.

    Raises InputError if the device does not exist.
    """
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device: mps is not available on this machine: use cpu or a CUDA index.")
    if not name.isdigit():
        return name
    count = torch.cuda.device_count()
    if count == 0:
        return "cpu"
    here = launch()
    if here.local_count > 1:
        if name != "0":
            raise InputError(
                f"--device: {name} with {here.local_count} processes: leave it out, and choose GPUs with CUDA_VISIBLE_DEVICES."
            )
        name = str(here.local_rank % count)
    if int(name) >= count:
        raise InputError(
            f"--device: {name} does not exist, this machine has {count} GPU(s): use 0{f' to {count - 1}' if count > 1 else ''}."
        )
    return f"cuda:{name}"


def is_gpu_missing(name: str) -> bool:
    """Whether `--device` asks for a CUDA GPU on a machine without any."""
    return name.isdigit() and torch.cuda.device_count() == 0


def gpu_memory(device: str) -> tuple[int, int] | None:
    """(free, total) bytes of a GPU, counting what other programs use. None if `device`, as torch names it, is none."""
    return torch.cuda.mem_get_info(device) if device.startswith("cuda") else None


def use_device(device: str) -> None:
    """Makes a GPU the current one, the only one that Triton, streams and graphs use. device: as torch names it."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)


@torch.no_grad()
def place(module: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Moves a frozen module to `device` weight by weight, and converts it to `dtype` there. Quantised weights keep theirs.

    So there is never a second copy of all weights: neither on the device nor in main memory, where they may be pages of
    a mapped file. CPUs also convert float16 slowly. Raises InputError for weights that are not finite, which are found
    here, because reading all of a file only to look would take seconds.
    """
    upload = Upload(device) if device.startswith("cuda") else None
    finite: dict[str, Tensor] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        converted = dtype if tensor.dtype in DTYPES.values() else tensor.dtype
        moved = upload(tensor.data) if upload and tensor.device.type == "cpu" else tensor.data.to(device)
        if tensor.dtype in DTYPES.values():
            finite[name] = moved.isfinite().all()
        tensor.data = moved.to(converted)
    refuse_nonfinite(module, finite)


def refuse_nonfinite(module: nn.Module, finite: Mapping[str, Tensor]) -> None:
    """Raises InputError if a weight of a model is not finite. finite: {weight: 0-dim bool}. Waits for the device once."""
    if not finite or torch.stack([*finite.values()]).all():
        return
    bad = [name for name, sound in finite.items() if not sound]
    source = getattr(module, "name_or_path", "") or "the model"
    raise InputError(
        f"{source}: {len(bad)} weight(s) of its {type(module).__name__} contain NaN or infinity, such as {bad[0]}: the file is "
        "damaged, or was saved in a precision too low for it: download it again, or choose another model."
    )


class Upload:
    """Copies from main memory to a GPU through two page-locked buffers: one is filled while the GPU reads the other.

    Copies of memory that is not page-locked are several times slower, because the driver fills a buffer of its own.
    """

    def __init__(self, device: str):
        self._device = device
        self._buffers = [
            (torch.empty(UPLOADED, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)
        ]

    def __call__(self, source: Tensor) -> Tensor:
        target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        whole = [t.reshape(-1).view(torch.uint8) for t in (source, target)]
        for part, place in zip(*(t.split(UPLOADED) for t in whole), strict=True):
            buffer, read = self._buffers[0]
            self._buffers.reverse()
            read.synchronize()
            place.copy_(buffer[: len(part)].copy_(part), non_blocking=True)
            read.record()
        return target


def why_no_gpu(work: str, full_size: bool, model: str = "SDXL") -> str:
    """Says that the CPU is used instead of a missing GPU. work: what it does, such as `trains`. model: the kind of model."""
    if _is_cpu_build():
        return how_to_get_gpu()
    slow = f": for {model} that is far too slow. {WHY}" if full_size else "."
    return f"no CUDA GPU was found, so the CPU {work}{slow}"


def how_to_get_gpu() -> str:
    """The remedy if PyTorch finds no GPU and the work needs one."""
    if not _is_cpu_build():
        return f"no CUDA GPU was found: check that `nvidia-smi` lists one. {WHY}"
    version = torch.__version__.partition("+")[0]
    return (
        "this PyTorch cannot use a GPU, as Windows' standard build cannot: once, `uv pip install --torch-backend=auto "
        f"--reinstall-package torch torch=={version}`, then start with `uv run --no-sync …`."
    )


def _is_cpu_build() -> bool:
    return sys.platform == "win32" and torch.version.cuda is None  # not verified on Windows

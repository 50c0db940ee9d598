"""Builds the Triton kernels at the sizes of full models, for GPUs that need not exist here, and prints the resources they use.

    python tests/build_kernels.py 7.5 8.6 9.0 12.0

Each line: compute capability, kernel, registers per thread, bytes of stack per thread (spilled registers), bytes of
shared memory.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parent.parent / "trainscripts"))
from sliders.fast import kernels

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
GROUPS, WIDTHS = 32, (640, 1280)
CHANNELS = (320, 2560)  # 10 and 80 in a group
TRANSFORMERS = ((24, 9216), (30, 10240))  # heads of 128 channels, and width of the feed-forward layers


class AbsentGPU:
    """Answers what Triton asks a driver before it builds a kernel."""

    def __init__(self, capability: str):
        self._target = GPUTarget("cuda", int(capability.replace(".", "")), 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch  # a different device, and so a different kernel cache, per capability

    def get_current_stream(self, device: int) -> int:
        return 0


def build_instead_of_running(built: dict) -> None:
    """Makes kernel launches only build the kernel, and store it in `built`: {(name, hash): compiled kernel}."""
    run = JITFunction.run

    def build(kernel, *args, grid, warmup, **kwargs):
        compiled = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        built[kernel.__name__, compiled.hash] = compiled

    JITFunction.run = build


def launch_all(dtype: torch.dtype, ampere: bool, float8: bool) -> None:
    """Launches all kernels, forward and backward. The tensors are on the CPU, because their contents are not read.

    ampere: also those for GPUs from Ampere on. float8: also on 8-bit floating-point numbers.
    """

    def tensor(*size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype, requires_grad=True)

    for width in WIDTHS:
        affine = (tensor(width), tensor(width))
        kernels.GEGLU.apply(tensor(2, 64, 8 * width)).sum().backward()
        for y in (tensor(2, 64, width), None):
            sum(kernels.AddLayerNorm.apply(tensor(2, 64, width), y, *affine, 1e-5)).sum().backward()
        step, weight = torch.ones(64, 1, dtype=dtype), torch.zeros(64, 8 * width, dtype=torch.int8)
        kernels.unpack_rows(weight, step, dtype)
        kernels.unpack_rows(weight, step, dtype, below=torch.zeros(96, 8 * width, dtype=dtype))
        if float8:
            kernels.unpack_rows(weight.to(torch.float8_e4m3fn), step, dtype)
        kernels.beside_scaled(*(torch.zeros(64, n, dtype=dtype) for n in (width, 96)), step[:2, 0], width + 128)
        if ampere:
            queries, prompt = (torch.zeros(2, n, width // 64, 64, dtype=dtype) for n in (64, 77))
            kernels.AttentionToFewKeys.apply(queries.requires_grad_(), prompt, prompt).sum().backward()
            out, narrow, up = (torch.zeros(3, *size, dtype=dtype) for size in ((64, width), (64, 96), (width, 96)))
            for weight in (up.mT, up.view(3, 96, width)):
                kernels.add_scaled_product(out, narrow, weight, step, torch.zeros(3, width, dtype=dtype))
    for channels in CHANNELS:
        affine = (tensor(channels), tensor(channels))
        for silu, shift in ((True, tensor(2, channels)), (False, None)):
            image = tensor(2, channels, 32, 32)
            sum(kernels.GroupNormSiLU.apply(image, shift, *affine, GROUPS, 1e-5, silu)).sum().backward()
    for heads, hidden in TRANSFORMERS:
        launch_those_of_transformers(tensor, 128 * heads, heads, hidden)


def launch_those_of_transformers(tensor: Callable[..., torch.Tensor], width: int, heads: int, hidden: int) -> None:
    x, y, weight, modulation = tensor(2, 64, width), tensor(2, 64, width), tensor(width), tensor(2, 3 * width)
    shift, scale, gate = modulation.detach().chunk(3, -1)
    for addend, factor in ((None, None), (y, gate)):
        sum(kernels.AddLayerNorm.apply(x, addend, scale, shift, 1e-6, factor, 1.0)).sum().backward()
    for factors in ((gate, scale), (None, None)):
        sum(kernels.AddRMSNorm.apply(x, None, None, None, weight, factors[1], 1e-5)).sum().backward()
        sum(kernels.AddRMSNorm.apply(x, y, weight, factors[0], weight, factors[1], 1e-5)).sum().backward()
        kernels.AddRMSNorm.apply(x, y, weight, factors[0], None, None, 1e-5).sum().backward()
    cos, sin = (torch.zeros(64, 128)[:, ::2] for _ in range(2))
    norm = kernels.HeadNorms(*torch.zeros(2, 128, dtype=x.dtype), 1e-6)
    joint = tensor(2, 64, 3 * width + 2 * hidden)
    sum(part.sum() for part in kernels.ParallelHeads.apply(joint, cos, sin, heads, norm)).backward()


def usage(kernel) -> tuple[int, int, int]:
    """Registers and stack per thread, shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        dump = subprocess.run([CUOBJDUMP, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
    registers, stack, _ = map(int, USAGE.search(dump.stdout).groups())
    return registers, stack, kernel.metadata.shared


def main(capabilities: list[str]) -> None:
    built = {}
    build_instead_of_running(built)
    with tempfile.TemporaryDirectory() as cache:  # a new cache, so that every kernel is built
        os.environ["TRITON_CACHE_DIR"] = cache
        for capability in capabilities:
            driver.set_active(AbsentGPU(capability))
            launch_all(torch.bfloat16, ampere=float(capability) >= 8, float8=float(capability) >= 8.9)
            for (name, _), kernel in built.items():
                print(capability, name, *usage(kernel))
            built.clear()


if __name__ == "__main__":
    main(sys.argv[1:])

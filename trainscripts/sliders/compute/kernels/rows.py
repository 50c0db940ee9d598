"""Unpacks matrices of one byte per value, with a step for each row."""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@cache
def reads_float8(device: torch.device) -> bool:
    """Whether Triton can convert float8 on a GPU: from Ada on."""
    return torch.cuda.get_device_capability(device) >= (8, 9)


def unpack_rows(weight: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [n, C] int8 or float8, step [n, 1] → weight · step in `dtype`."""
    rows, width = weight.shape
    out = torch.empty_like(weight, dtype=dtype)
    _unpack_rows[rows, triton.cdiv(width, BLOCK)](weight, step, out, width, BLOCK)
    return out


@triton.jit
def _unpack_rows(weight, step, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    place = row.to(tl.int64) * width + columns
    value = tl.load(weight + place, mask).to(tl.float32) * tl.load(step + row).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask)

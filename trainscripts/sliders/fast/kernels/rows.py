"""Unpacks matrices of one byte per value, with a step for each row."""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 8, 256  # the tile of one program


@cache
def reads_float8(device: torch.device) -> bool:
    """Whether Triton can convert float8 on a GPU: from Ada on."""
    return torch.cuda.get_device_capability(device) >= (8, 9)


def unpack_rows(
    weight: Tensor, step: Tensor, dtype: torch.dtype, below: Tensor | None = None, total: int = 0
) -> Tensor:
    """weight [n, C] int8 or float8, step [n, 1] → weight · step [n, C] in `dtype`.

    below [r, C], contiguous, in `dtype`: rows that are put below it, and below these zeros, so that there are `total` rows.
    """
    (rows, width), more = weight.shape, 0 if below is None else len(below)
    total = max(total, rows + more)
    out = weight.new_empty((total, width), dtype=dtype)
    grid = triton.cdiv(total, ROWS), triton.cdiv(width, COLUMNS)
    _unpack_rows[grid](weight, step, below, out, rows, more, total, width, ROWS, COLUMNS)
    return out


@triton.jit
def _unpack_rows(
    weight, step, below, out, rows, more, total, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    offset = row.to(tl.int64)[:, None] * width + column[None, :]
    inside = (column < width)[None, :]
    mask = inside & (row < rows)[:, None]
    value = tl.load(weight + offset, mask).to(tl.float32) * tl.load(step + row, row < rows).to(tl.float32)[:, None]
    tl.store(out + offset, value.to(out.dtype.element_ty), mask)
    if below is not None:
        source = (row - rows).to(tl.int64)[:, None] * width + column[None, :]
        value = tl.load(below + source, inside & ((row >= rows) & (row < rows + more))[:, None], other=0.0)
        tl.store(out + offset, value, inside & ((row >= rows) & (row < total))[:, None])

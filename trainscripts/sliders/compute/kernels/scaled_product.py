"""Adds a product of low rank to a matrix, with a factor for each row of the batch.

Libraries need two kernels for it, and take twice as long as its passes over memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, RANKS = 64, 128, 32  # the tile of one program, and the ranks that it reads at once


def add_scaled_product(
    out: Tensor, narrow: Tensor, weight: Tensor, strength: Tensor, bias: Tensor | None = None
) -> Tensor:
    """out [n, m, C] += scaled·weight + bias, where scaled [n, m, r] = narrow · strength, which is returned.

    weight [n, r, C], bias [n · C]. strength [B]: of the rows of the batch, each of which has m / B of the m rows. The
    last dimension of `out` and `narrow` is contiguous. For each of the m rows, the n results lie side by side in the
    returned tensor.
    """
    count, rows, width = out.shape
    rank = narrow.shape[-1]
    scaled = torch.empty((rows, count, rank), dtype=narrow.dtype, device=narrow.device).transpose(0, 1)
    strides = (*out.stride()[:2], *narrow.stride()[:2], *weight.stride(), *scaled.stride()[:2])
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS), count)
    sizes = (rows, width, rank, rows // len(strength), ROWS, COLUMNS, RANKS)
    tensors = (out, narrow, weight, strength, out if bias is None else bias, scaled)
    _add_scaled_product[grid](*tensors, *strides, *sizes, bias is not None)
    return scaled


@triton.jit
def _add_scaled_product(
    out, narrow, weight, strength, bias, scaled, out_stack, out_row, narrow_stack, narrow_row,
    weight_stack, weight_rank, weight_column, scaled_stack, scaled_row,
    rows, width, rank, share, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    stack = tl.program_id(2)
    factor = tl.load(strength + row // share, row < rows, other=0.0).to(tl.float32)
    narrow += stack * narrow_stack + row.to(tl.int64)[:, None] * narrow_row
    scaled += stack * scaled_stack + row.to(tl.int64)[:, None] * scaled_row
    weight += stack * weight_stack + column[None, :] * weight_column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rank, RANKS):
        index = start + tl.arange(0, RANKS)
        mask = (row < rows)[:, None] & (index < rank)[None, :]
        part = tl.load(narrow + index[None, :], mask, other=0.0).to(tl.float32) * factor[:, None]
        part = part.to(scaled.dtype.element_ty)
        if tl.program_id(1) == 0:
            tl.store(scaled + index[None, :], part, mask)
        inside = (index < rank)[:, None] & (column < width)[None, :]
        other = tl.load(weight + index[:, None] * weight_rank, inside, other=0.0)
        total = tl.dot(part, other, total, input_precision="ieee")
    place = out + stack * out_stack + row.to(tl.int64)[:, None] * out_row + column[None, :]
    mask = (row < rows)[:, None] & (column < width)[None, :]
    total += tl.load(place, mask, other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias + stack * width + column, column < width, other=0.0).to(tl.float32)[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask)

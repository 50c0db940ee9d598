"""Sums and rows of matrices of low rank, with a factor for each row of the batch.

Libraries need several kernels for them, and take twice as long as their passes over memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, RANKS = 64, 128, 32  # the tile of one program, and the ranks that it reads at once
COPIED = 64  # rows and columns that one program copies


def add_scaled_product(
    out: Tensor, projected: Tensor, weight: Tensor, scaling: Tensor, bias: Tensor | None = None
) -> Tensor:
    """out [n, m, C] += (projected·weight) · scaling + bias, for projected [n, m, r]. Returns projected · scaling.

    weight [n, r, C], bias [n · C]. scaling [B]: of the rows of the batch, each of which has m / B of the m rows. The
    last dimension of `out` and `projected` is contiguous. For each of the m rows, the n results lie side by side in the
    returned tensor.
    """
    count, rows, width = out.shape
    rank = projected.shape[-1]
    scaled = torch.empty((rows, count, rank), dtype=projected.dtype, device=projected.device).transpose(0, 1)
    strides = (*out.stride()[:2], *projected.stride()[:2], *weight.stride(), *scaled.stride()[:2])
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS), count)
    sizes = (rows, width, rank, rows // len(scaling), ROWS, COLUMNS, RANKS)
    _add_scaled_product[grid](out, projected, weight, scaling, bias, scaled, *strides, *sizes)
    return scaled


def beside_scaled(left: Tensor, projected: Tensor, scaling: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """left [m, C], projected [m, r] → [m, width], which is left, projected · scaling and zeros; and projected · scaling alone.

    scaling [B]: of the rows of the batch, each of which has m / B of the m rows. `projected` is contiguous.
    """
    rows, rank = projected.shape
    left = left if left.stride(1) == 1 else left.contiguous()
    both, scaled = left.new_empty((rows, width)), torch.empty_like(projected)
    grid = (triton.cdiv(rows, COPIED), triton.cdiv(width, COPIED))
    sizes = (left.stride(0), rows, left.shape[1], rank, width, rows // len(scaling), COPIED)
    _beside_scaled[grid](left, projected, scaling, both, scaled, *sizes, num_warps=2)
    return both, scaled


@triton.jit
def _beside_scaled(
    left, projected, scaling, both, scaled, left_row, rows, left_width, rank, width, share, SIDE: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0) * SIDE + tl.arange(0, SIDE), tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    inside = (row < rows)[:, None]
    factor = tl.load(scaling + row // share, row < rows, other=0.0).to(tl.float32)
    is_left, index = column < left_width, column - left_width
    offset = row.to(tl.int64)[:, None]
    value = tl.load(left + offset * left_row + column[None, :], inside & is_left[None, :], other=0.0)
    is_right = inside & ((index >= 0) & (index < rank))[None, :]
    right = tl.load(projected + offset * rank + index[None, :], is_right, other=0.0).to(tl.float32) * factor[:, None]
    right = right.to(value.dtype)
    tl.store(scaled + offset * rank + index[None, :], right, is_right)
    value = tl.where(is_left[None, :], value, right)
    tl.store(both + offset * width + column[None, :], value, inside & (column < width)[None, :])


@triton.jit
def _add_scaled_product(
    out, projected, weight, scaling, bias, scaled, out_stack, out_row, projected_stack, projected_row,
    weight_stack, weight_rank, weight_column, scaled_stack, scaled_row,
    rows, width, rank, share, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    stack = tl.program_id(2)
    factor = tl.load(scaling + row // share, row < rows, other=0.0).to(tl.float32)
    offset = out + stack * out_stack + row.to(tl.int64)[:, None] * out_row + column[None, :]
    within = (row < rows)[:, None] & (column < width)[None, :]
    before = tl.load(offset, within, other=0.0)  # first, to arrive while the product is computed
    projected += stack * projected_stack + row.to(tl.int64)[:, None] * projected_row
    scaled += stack * scaled_stack + row.to(tl.int64)[:, None] * scaled_row
    weight += stack * weight_stack + column[None, :] * weight_column
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rank, RANKS):
        index = start + tl.arange(0, RANKS)
        mask = (row < rows)[:, None] & (index < rank)[None, :]
        part = tl.load(projected + index[None, :], mask, other=0.0)
        if tl.program_id(1) == 0:
            tl.store(scaled + index[None, :], (part.to(tl.float32) * factor[:, None]).to(scaled.dtype.element_ty), mask)
        inside = (index < rank)[:, None] & (column < width)[None, :]
        other = tl.load(weight + index[:, None] * weight_rank, inside, other=0.0)
        product = tl.dot(part, other, product, input_precision="ieee")
    total = product * factor[:, None] + before.to(tl.float32)
    if bias is not None:
        total += tl.load(bias + stack * width + column, column < width, other=0.0).to(tl.float32)[None, :]
    tl.store(offset, total.to(out.dtype.element_ty), within)

"""GEGLU, the gated linear unit in the feed-forward layers of diffusers' transformer blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 512, 2  # of a program


class GEGLU(torch.autograd.Function):
    """x [… , 2n] → a · gelu(b) [… , n] for the halves a, b of the last dimension. Shazeer 2020, arXiv:2002.05202."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        out = x.new_empty((*x.shape[:-1], width))
        grid = (x.numel() // x.shape[-1], triton.cdiv(width, BLOCK))
        _geglu[grid](x, out, width, BLOCK, num_warps=WARPS)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        width = grad.shape[-1]
        grad_x = torch.empty_like(x)
        grid = (x.numel() // x.shape[-1], triton.cdiv(width, BLOCK))
        _geglu_backward[grid](x, grad.contiguous(), grad_x, width, BLOCK, num_warps=WARPS)
        return grad_x


@triton.jit
def _halves(x, width, BLOCK: tl.constexpr):
    """Columns and mask of this program, both halves of its row, and for the gate exp(-gate² / 2) and the normal CDF.

    The CDF follows Abramowitz & Stegun 1964, 7.1.26, to 1e-7. Its exponential is also that of the density.
    """
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = x + tl.program_id(0).to(tl.int64) * 2 * width
    mask = columns < width
    linear = tl.load(row + columns, mask, other=0.0).to(tl.float32)
    gate = tl.load(row + width + columns, mask, other=0.0).to(tl.float32)
    bell = tl.exp(-0.5 * gate * gate)
    t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * tl.abs(gate))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * bell * series
    return columns, mask, linear, gate, bell, tl.where(gate < 0, tail, 1.0 - tail)


@triton.jit
def _geglu(x, out, width, BLOCK: tl.constexpr):
    columns, mask, linear, gate, _, normal_cdf = _halves(x, width, BLOCK)
    result = linear * gate * normal_cdf
    tl.store(out + tl.program_id(0).to(tl.int64) * width + columns, result.to(out.dtype.element_ty), mask)


@triton.jit
def _geglu_backward(x, grad, grad_x, width, BLOCK: tl.constexpr):
    columns, mask, linear, gate, bell, normal_cdf = _halves(x, width, BLOCK)
    upstream = tl.load(grad + tl.program_id(0).to(tl.int64) * width + columns, mask, other=0.0).to(tl.float32)
    row = grad_x + tl.program_id(0).to(tl.int64) * 2 * width
    tl.store(row + columns, (upstream * gate * normal_cdf).to(grad_x.dtype.element_ty), mask)
    slope = upstream * linear * (normal_cdf + gate * 0.3989422804014327 * bell)
    tl.store(row + width + columns, slope.to(grad_x.dtype.element_ty), mask)

"""GEGLU, the gated linear unit in the feed-forward layers of diffusers' transformer blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


class GEGLU(torch.autograd.Function):
    """x [… , 2n] → a · gelu(b) [… , n] for the halves a, b of the last dimension. Shazeer 2020, arXiv:2002.05202."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        out = x.new_empty((*x.shape[:-1], width))
        grid = (x.numel() // x.shape[-1], triton.cdiv(width, BLOCK))
        _geglu[grid](x, out, width, BLOCK)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        width = grad.shape[-1]
        grad_x = torch.empty_like(x)
        grid = (x.numel() // x.shape[-1], triton.cdiv(width, BLOCK))
        _geglu_backward[grid](x, grad.contiguous(), grad_x, width, BLOCK)
        return grad_x


@triton.jit
def _halves(x, width, BLOCK: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = x + tl.program_id(0).to(tl.int64) * 2 * width
    mask = columns < width
    linear = tl.load(row + columns, mask, other=0.0).to(tl.float32)
    gate = tl.load(row + width + columns, mask, other=0.0).to(tl.float32)
    normal_cdf = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    return columns, mask, linear, gate, normal_cdf


@triton.jit
def _geglu(x, out, width, BLOCK: tl.constexpr):
    columns, mask, linear, gate, normal_cdf = _halves(x, width, BLOCK)
    result = linear * gate * normal_cdf
    tl.store(out + tl.program_id(0).to(tl.int64) * width + columns, result.to(out.dtype.element_ty), mask)


@triton.jit
def _geglu_backward(x, grad, grad_x, width, BLOCK: tl.constexpr):
    columns, mask, linear, gate, normal_cdf = _halves(x, width, BLOCK)
    upstream = tl.load(grad + tl.program_id(0).to(tl.int64) * width + columns, mask, other=0.0).to(tl.float32)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    row = grad_x + tl.program_id(0).to(tl.int64) * 2 * width
    tl.store(row + columns, (upstream * gate * normal_cdf).to(grad_x.dtype.element_ty), mask)
    slope = upstream * linear * (normal_cdf + gate * density)
    tl.store(row + width + columns, slope.to(grad_x.dtype.element_ty), mask)

"""Quantised weights, unpacked by one kernel on a GPU."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sliders.compute.quantization import unpacked as plainly_unpacked
from sliders.fast.kernel_support import can_fuse

ALIGNED = 16  # a product's outputs lie in rows of a multiple of so many values: kernels read 16 bytes at once


def unpacked(weight: Tensor, step: Tensor, dtype: torch.dtype, below: Tensor | None = None) -> Tensor:
    """weight [out, in] · step [out, 1] in `dtype`. below [r, in], in `dtype`: rows that are put below it.

    Below these come rows of zeros, so that there are a multiple of `ALIGNED`.
    """
    rows = len(weight) if below is None else -(-(len(weight) + len(below)) // ALIGNED) * ALIGNED
    if weight.is_cuda and can_fuse(str(weight.device)):
        from sliders.fast import kernels

        if weight.dtype == torch.int8 or kernels.reads_float8(weight.device):
            return kernels.unpack_rows(weight, step, dtype, below, rows)
    whole = plainly_unpacked(weight, step, dtype)
    if below is None:
        return whole
    return F.pad(torch.cat([whole, below]), (0, 0, 0, rows - len(weight) - len(below)))


def byte_product(x: Tensor, weight: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, …, in] → x·Wᵀ + b [B, …, out], where W is weight [out, in] · step [out, 1]."""
    return F.linear(x, unpacked(weight, step, x.dtype), bias)


def byte_gradient(grad: Tensor, weight: Tensor, step: Tensor) -> Tensor:
    """grad [B, …, out] → grad·W [B, …, in]."""
    return grad @ unpacked(weight, step, grad.dtype)

"""Adds products of low rank to matrices, and puts them beside each other, with a factor for each row of the batch."""

import torch
from torch import Tensor

from sliders.fast.kernel_support import can_fuse, can_multiply


def add_scaled(out: Tensor, projected: Tensor, weights: Tensor, scaling: Tensor, bias: Tensor | None = None) -> Tensor:
    """out [n, m, C] += scaled·weights + bias, where scaled [n, m, r] = projected · scaling, which is returned.

    weights [n, r, C], bias [n · C]. scaling [B] float32: of the rows of the batch, each of which has m / B of the m rows. The
    last dimension of `out` and `projected` is contiguous; they may be parts of wider rows.
    """
    if out.is_cuda and out.dtype != torch.float32 and can_multiply(str(out.device)):
        from sliders.fast import kernels

        return kernels.add_scaled_product(out, projected, weights, scaling, bias)
    scaled = scale(projected, scaling)
    if bias is not None:
        out += bias.view(len(out), 1, -1)
    out.baddbmm_(scaled, weights)
    return scaled


def scale(projected: Tensor, scaling: Tensor) -> Tensor:
    """projected · scaling, as in `add_scaled`, rounded once, to projected's dtype."""
    rows = projected.unflatten(1, (len(scaling), -1)) * scaling.view(-1, 1, 1)
    return rows.flatten(1, 2).to(projected.dtype)


def beside_scaled(left: Tensor, projected: Tensor, scaling: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """left [m, C], projected [m, r] → [m, width], which is left, projected · scaling and zeros; and projected · scaling alone.

    scaling [B]: of the rows of the batch, each of which has m / B of the m rows. The rows of `left` may lie apart.
    """
    if left.is_cuda and can_fuse(str(left.device)):
        from sliders.fast import kernels

        return kernels.beside_scaled(left, projected, scaling, width)
    scaled = scale(projected[None], scaling)[0]
    zeros = left.new_zeros((len(left), width - left.shape[1] - projected.shape[1]))
    return torch.cat([left, scaled, zeros], 1), scaled

"""Adds products of low rank to matrices, and puts them beside each other, with a factor for each row of the batch."""

import torch
from torch import Tensor

from sliders.fast.kernel_support import can_fuse, can_multiply


def add_scaled(out: Tensor, narrow: Tensor, weights: Tensor, strength: Tensor, bias: Tensor | None = None) -> Tensor:
    """out [n, m, C] += scaled·weights + bias, where scaled [n, m, r] = narrow · strength, which is returned.

    weights [n, r, C], bias [n · C]. strength [B] float32: of the rows of the batch, each of which has m / B of the m rows. The
    last dimension of `out` and `narrow` is contiguous; they may be parts of wider rows.
    """
    if out.is_cuda and out.dtype != torch.float32 and can_multiply(str(out.device)):
        from sliders.fast import kernels

        return kernels.add_scaled_product(out, narrow, weights, strength, bias)
    scaled = scale(narrow, strength)
    if bias is not None:
        out += bias.view(len(out), 1, -1)
    out.baddbmm_(scaled, weights)
    return scaled


def scale(narrow: Tensor, strength: Tensor) -> Tensor:
    """narrow · strength, as in `add_scaled`, rounded once, to narrow's dtype."""
    rows = narrow.unflatten(1, (len(strength), -1)) * strength.view(-1, 1, 1)
    return rows.flatten(1, 2).to(narrow.dtype)


def beside_scaled(left: Tensor, narrow: Tensor, strength: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """left [m, C], narrow [m, r] → [m, width], which is left, narrow · strength and zeros; and narrow · strength alone.

    strength [B]: of the rows of the batch, each of which has m / B of the m rows. The rows of `left` may lie apart.
    """
    if left.is_cuda and can_fuse(str(left.device)):
        from sliders.fast import kernels

        return kernels.beside_scaled(left, narrow, strength, width)
    scaled = scale(narrow[None], strength)[0]
    zeros = left.new_zeros((len(left), width - left.shape[1] - narrow.shape[1]))
    return torch.cat([left, scaled, zeros], 1), scaled

"""Several tensors in one, so that one kernel can read them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class JointTensor:
    """Owns one tensor, of which the tensors [n, …] that it is made of become views, each below the other.

    They keep their values and their memory format: each row is dense. Parameters stay the objects that they are.
    """

    def __init__(self, parts: Sequence[Tensor], room: int = 0):
        """room: rows below the parts, initially 0."""
        first, sizes = parts[0], [len(part) for part in parts]
        self.rows = sum(sizes)
        self.whole = torch.empty_strided(
            (self.rows + room, *first.shape[1:]), first.stride(), dtype=first.dtype, device=first.device
        )
        self.room = self.whole[self.rows :]
        self.room.zero_()
        for part, view in zip(parts, self.own.split(sizes), strict=True):
            view.copy_(part.detach())
            part.data = view

    @property
    def own(self) -> Tensor:
        """The parts without the room, [Σ n, …]."""
        return self.whole[: self.rows]

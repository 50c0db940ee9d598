"""Tensors that lie next to each other in memory, so that one kernel can read them as one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor


def make_neighbours(parts: Sequence[Tensor], room: int = 0) -> Tensor:
    """Moves tensors [n, …] into one, which is returned, below each other. They keep their values, as views of it.

    Their memory format stays: each row is dense. room: rows below them, initially 0.
    """
    first, sizes = parts[0], [len(part) for part in parts]
    shape = (sum(sizes) + room, *first.shape[1:])
    joint = torch.empty_strided(shape, first.stride(), dtype=first.dtype, device=first.device)
    joint[len(joint) - room :] = 0
    for part, view in zip(parts, joint.split([*sizes, room]), strict=False):
        view.copy_(part.detach())
        part.data = view
    return joint


def stacked_view(parts: Sequence[Tensor]) -> Tensor | None:
    """Parts of one shape [n, …] → [parts · n, …], a view of their common memory, or None if they are not neighbours."""
    first = parts[0]
    if len(parts) == 1:
        return first
    size = first.numel() * first.element_size()
    adjacent = all(p.is_contiguous() and p.data_ptr() == first.data_ptr() + i * size for i, p in enumerate(parts))
    if not adjacent or first.untyped_storage().data_ptr() != parts[-1].untyped_storage().data_ptr():
        return None
    return first.detach().as_strided((len(parts) * first.shape[0], *first.shape[1:]), first.stride())


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Parts [n, …] → [parts · n, …]: a view if they are neighbours, otherwise a copy."""
    view = stacked_view(parts)
    return torch.cat(tuple(parts)) if view is None else view

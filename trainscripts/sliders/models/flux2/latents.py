"""The forms of latents: 2 × 2 patches of what the VAE encodes, as channels of a map, and as the transformer's tokens."""

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 2  # latents of the VAE along each side of a patch


def patched(latents: Tensor) -> Tensor:
    """[B, c, 2 h, 2 w] of the VAE → [B, 4 c, h, w]. Channel 4 c + 2 i + j is row i, column j of a patch."""
    return F.pixel_unshuffle(latents, PATCH)


def unpatched(latents: Tensor) -> Tensor:
    """The inverse of `patched`."""
    return F.pixel_shuffle(latents, PATCH)


def to_tokens(maps: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h · w, C], row by row."""
    return maps.flatten(2).mT


def to_maps(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_tokens`. size: (h, w)."""
    return tokens.mT.unflatten(2, size)


def image_places(size: tuple[int, int], device: torch.device) -> Tensor:
    """Places of an image's tokens for the rotary embedding, [h · w, 4] int64: time 0, row, column, 0."""
    rows, columns = torch.meshgrid(*(torch.arange(side, device=device) for side in size), indexing="ij")
    zeros = torch.zeros_like(rows)
    return torch.stack([zeros, rows, columns, zeros], -1).flatten(0, 1)


def text_places(count: int, device: torch.device) -> Tensor:
    """Places of a prompt's tokens, [count, 4] int64: 0, 0, 0, index."""
    indexes = torch.arange(count, device=device)
    zeros = torch.zeros_like(indexes)
    return torch.stack([zeros, zeros, zeros, indexes], -1)

"""How different two pictures look, without a trained model."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 4  # resolutions, each half of the one before
FAINT = 0.25  # an edge weaker than this counts by its strength, a stronger one by its direction


def distance(first: Tensor, second: Tensor) -> Tensor:
    """[N]: how different two pictures [N, 3, H, W] look, from 0: differences of colours and edges at four resolutions.

    At each, colours and their horizontal and vertical changes are divided by the local strength of the changes (a fixed
    relative of LPIPS, without learned weights), so that a moved edge counts and a faint gradient hardly does.
    """
    total = torch.zeros(len(first), device=first.device)
    for _ in range(LEVELS):
        total = total + (_described(first) - _described(second)).square().sum(1).mean((1, 2))
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return (total / LEVELS).sqrt()


def _described(images: Tensor) -> Tensor:
    """[N, 9, H, W]: colours, and edges whose strength is held below 1."""
    across = F.pad(images[..., 2:] - images[..., :-2], (1, 1))
    down = F.pad(images[..., 2:, :] - images[..., :-2, :], (0, 0, 1, 1))
    edges = torch.cat([across, down], dim=1)
    strength = edges.square().sum(1, keepdim=True)
    return torch.cat([images, edges / (strength + FAINT**2).sqrt()], dim=1)

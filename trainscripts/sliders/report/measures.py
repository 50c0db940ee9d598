"""Measures of the change between two pictures that need no downloads. Pictures are [3, H, W] float32 in [0, 1]."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # weights of R, G and B, ITU-R BT.601
WINDOW, SIGMA = 11, 1.5  # px, Gaussian window of SSIM
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def mean_difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of the pixels, 0 to 1."""
    return (a - b).abs().mean().item()


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of the luma (Wang et al. 2004, IEEE TIP 13(4), eq. 13): 1 for equal pictures."""
    window = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    window = torch.outer(window, window)[None, None] / window.sum() ** 2

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window)

    x, y = _luma(a), _luma(b)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    scores = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (scores / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean().item()


def edge_difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of the edge maps (magnitude of the luma's Sobel gradient), 0 to about 1."""
    return (_edges(a) - _edges(b)).abs().mean().item()


def _edges(picture: Tensor) -> Tensor:
    across = torch.tensor(SOBEL) / 4
    gradients = F.conv2d(_luma(picture), torch.stack([across, across.T])[:, None])
    return gradients.norm(dim=1)


def _luma(picture: Tensor) -> Tensor:
    return (picture * torch.tensor(LUMA).view(3, 1, 1)).sum(0)[None, None]


# {title on the page: measure(picture, the same picture at multiplier 0)}
MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "mean absolute difference": mean_difference,
    "1 − SSIM": lambda a, b: 1 - ssim(a, b),
    "edge-map difference": edge_difference,
}

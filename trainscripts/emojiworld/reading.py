"""How each attribute is read from pictures, and how it is taken out before two pictures are compared. One entry for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emojiworld.changes import LUMA, TO_CHROMA, blur, constant, frost, turn_hue
from emojiworld.looking import PATHS, Seen, along_path
from emojiworld.pictures import Pictures
from emojiworld.world import IMAGE_SIZE, pixel_centres

NOISE = 1e-4  # variance of grey levels

Values = Tensor  # [N] fp32 in the attribute's unit; NaN where a picture shows nothing


@dataclass(frozen=True)
class Reader:
    """read: images [N, 3, H, W] → values. level: two pictures of one scene and their values → the same without the difference."""

    read: Callable[[Tensor, Seen, Pictures], Values]
    level: Callable[[Tensor, Tensor, Seen, Seen, Values, Values, Pictures], tuple[Tensor, Tensor]]


def _read_path(field: str, values: tuple[float, ...], view: Callable | None = None) -> Callable:
    def read(images: Tensor, seen: Seen, pictures: Pictures) -> Values:
        options = {} if view is None else {"view": view}
        return along_path(images, seen, field, values, pictures, **options)

    return read


def _add_true_change(field: str) -> Callable:
    """Adds to the first picture what the name's true pictures change from its value to the second's."""

    def level(first, second, seen, other, value, wanted, pictures):
        start, end = (seen.having(field, values.nan_to_num(0)).drawn(pictures) for values in (value, wanted))
        return (first + end - start).clamp(0, 1), second

    return level


def _read_size(images: Tensor, seen: Seen, pictures: Pictures) -> Values:
    return seen.scenes.size


def _level_size(first, second, seen, other, value, wanted, pictures):
    """Zooms the first picture around its emoji."""
    zoom = (wanted / value).nan_to_num(1).clamp(0.25, 4)[:, None, None]
    x, y = pixel_centres(first.device)
    middle_x, middle_y = seen.scenes.x[:, None, None], seen.scenes.y[:, None, None]
    across, down = torch.broadcast_tensors((x - middle_x) / zoom + middle_x, (y - middle_y) / zoom + middle_y)
    grid = torch.stack([across, down], dim=-1) / (IMAGE_SIZE / 2) - 1
    return F.grid_sample(first, grid, mode="bilinear", padding_mode="border", align_corners=False), second


def _read_hue(images: Tensor, seen: Seen, pictures: Pictures) -> Values:
    """Degrees by which the colours are turned against those of the true picture, each pixel by its colour's strength."""
    shown, true = (_chroma(picture) for picture in (images, seen.having("hue", 0.0).drawn(pictures)))
    return torch.rad2deg((shown * true.conj() * seen.mask[:, 0]).sum((1, 2)).angle()).to(images.dtype)


def _chroma(images: Tensor) -> Tensor:
    """[N, 3, H, W] → [N, H, W] complex: hue and strength of each pixel's colour."""
    return torch.complex(*torch.einsum("cr,nrhw->cnhw", constant(TO_CHROMA, images.device), images))


def _level_hue(first, second, seen, other, value, wanted, pictures):
    return turn_hue(first, seen.mask, (wanted - value).nan_to_num(0)), second


def _level_frost(first, second, seen, other, value, wanted, pictures):
    """Adds ice to the picture that has less of it."""
    low, high = (v.nan_to_num(0).clamp(0, 0.95) for v in (value, wanted))
    return (
        frost(first, seen.mask, ((high - low) / (1 - low)).clamp(min=0)),
        frost(second, other.mask, ((low - high) / (1 - high)).clamp(min=0)),
    )


def _level_blur(first, second, seen, other, value, wanted, pictures):
    """Blurs the sharper picture."""
    more = wanted.nan_to_num(0).clamp(min=0).square() - value.nan_to_num(0).clamp(min=0).square()
    return (
        blur(first, seen.mask, more.clamp(min=0).sqrt()),
        blur(second, other.mask, (-more).clamp(min=0).sqrt()),
    )


def _sharpness(images: Tensor) -> Tensor:
    """[N, 4]: how much detail there is in octaves of 1, 2, 4 and 8 px, as logarithms. What is fainter than NOISE does not count."""
    grey = torch.einsum("c,nchw->nhw", constant(LUMA, images.device), images)[:, None]
    energies = []
    for _ in range(4):
        coarse = F.avg_pool2d(grey, 2)
        detail = grey - F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        energies.append(detail.square().mean((1, 2, 3)))
        grey = coarse
    return (torch.stack(energies, dim=1) + NOISE).log()


READERS = {
    "tone": Reader(_read_path("tone", PATHS["tone"]), _add_true_change("tone")),
    "style": Reader(_read_path("style", PATHS["style"]), _add_true_change("style")),
    "frost": Reader(_read_path("frost", (0.0, 0.5, 1.0)), _level_frost),
    "hue": Reader(_read_hue, _level_hue),
    "size": Reader(_read_size, _level_size),
    "blur": Reader(_read_path("blur", (0.0, 0.75, 1.5, 2.25, 3.0, 4.0, 6.0), _sharpness), _level_blur),
}


def distance(first: Tensor, second: Tensor) -> Tensor:
    """[N]: how different two pictures [N, 3, H, W] look, from 0: differences of colours and edges at four resolutions.

    At each, colours and their horizontal and vertical changes are divided by the local strength of the changes (a fixed
    relative of LPIPS, without learned weights), so that a moved edge counts and a faint gradient hardly does.
    """
    total = torch.zeros(len(first), device=first.device)
    for _ in range(4):
        total = total + (_described(first) - _described(second)).square().sum(1).mean((1, 2))
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return (total / 4).sqrt()


def _described(images: Tensor) -> Tensor:
    """[N, 9, H, W]: colours, and edges whose strength is held below 1."""
    across = F.pad(images[..., 2:] - images[..., :-2], (1, 1))
    down = F.pad(images[..., 2:, :] - images[..., :-2, :], (0, 0, 1, 1))
    edges = torch.cat([across, down], dim=1)
    strength = edges.square().sum(1, keepdim=True)
    return torch.cat([images, edges / (strength + 0.25**2).sqrt()], dim=1)

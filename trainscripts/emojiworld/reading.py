"""How each attribute is read from pictures, and how it is taken out before two pictures are compared. One entry for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emojiworld.changes import LUMA, TO_CHROMA, blur, constant, frost, turn_hue
from emojiworld.looking import PATHS, Read, Seen, View, along_path, cells
from emojiworld.pictures import Pictures
from emojiworld.world import IMAGE_SIZE, pixel_centres

NOISE = 1e-4  # variance of grey levels

Shown = tuple[Tensor, Seen]  # pictures [N, 3, H, W] and how they were seen
# Two pictures of each of N scenes → the two without the attribute's difference, each [N, 3, H, W].
Level = Callable[[Shown, Shown, Pictures], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Reader:
    """How an attribute is read, and how it is taken out of two pictures that are to be compared."""

    read: Read
    level: Level


def _path(field: str, values: tuple[float, ...], view: View = cells) -> Read:
    def read(images: Tensor, seen: Seen, pictures: Pictures) -> Tensor:
        return along_path(images, seen, field, values, pictures, view)

    return read


def _true_change(field: str) -> Level:
    """Adds to the first picture what the name's true pictures change from its value to the second's."""

    def level(first: Shown, second: Shown, pictures: Pictures) -> tuple[Tensor, Tensor]:
        (images, seen), (others, other) = first, second
        change = seen.having(field, other.scenes.value(field)).drawn(pictures) - seen.drawn(pictures)
        return (images + change).clamp(0, 1), others

    return level


def _read_size(images: Tensor, seen: Seen, pictures: Pictures) -> Tensor:
    return seen.scenes.size


def _zoom(first: Shown, second: Shown, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Zooms the first picture around its emoji to the second's size."""
    (images, seen), (others, other) = first, second
    scenes = seen.scenes
    zoom, middle_x, middle_y = (v[:, None, None] for v in (other.scenes.size / scenes.size, scenes.x, scenes.y))
    x, y = pixel_centres(images.device)
    across, down = torch.broadcast_tensors((x - middle_x) / zoom + middle_x, (y - middle_y) / zoom + middle_y)
    grid = torch.stack([across, down], dim=-1) / (IMAGE_SIZE / 2) - 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False), others


def _read_hue(images: Tensor, seen: Seen, pictures: Pictures) -> Tensor:
    """Degrees by which the colours are turned against those of the true picture, each pixel by its colour's strength."""
    shown, true = (_chroma(picture) for picture in (images, seen.having("hue", 0.0).drawn(pictures)))
    return -torch.rad2deg((shown * true.conj() * seen.mask[:, 0]).sum((1, 2)).angle())


def _chroma(images: Tensor) -> Tensor:
    """[N, 3, H, W] → [N, H, W] complex: hue and strength of each pixel's colour."""
    return torch.complex(*torch.einsum("cr,nrhw->cnhw", constant(TO_CHROMA, images.device), images))


def _turn(first: Shown, second: Shown, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Turns the first picture's colours to the second's."""
    (images, seen), (others, other) = first, second
    return turn_hue(images, seen.mask, other.scenes.value("hue") - seen.scenes.value("hue")), others


def _freeze(first: Shown, second: Shown, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Adds ice to the picture that has less of it."""
    (images, seen), (others, other) = first, second
    clear, covered = (1 - s.scenes.value("frost").clamp(max=0.95) for s in (seen, other))
    return (
        frost(images, seen.mask, (1 - covered / clear).clamp(min=0)),
        frost(others, other.mask, (1 - clear / covered).clamp(min=0)),
    )


def _soften(first: Shown, second: Shown, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Blurs the sharper picture."""
    (images, seen), (others, other) = first, second
    more = other.scenes.value("blur").square() - seen.scenes.value("blur").square()
    return blur(images, seen.mask, more.clamp(min=0).sqrt()), blur(others, other.mask, (-more).clamp(min=0).sqrt())


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
    "tone": Reader(_path("tone", PATHS["tone"]), _true_change("tone")),
    "style": Reader(_path("style", PATHS["style"]), _true_change("style")),
    "frost": Reader(_path("frost", (0.0, 0.5, 1.0)), _freeze),
    "hue": Reader(_read_hue, _turn),
    "size": Reader(_read_size, _zoom),
    "blur": Reader(_path("blur", (0.0, 0.75, 1.5, 2.25, 3.0, 4.0, 6.0), _sharpness), _soften),
}

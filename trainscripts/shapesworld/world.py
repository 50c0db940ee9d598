"""The shapes world: one coloured shape on a plain background, drawn from known numbers and measured back in pixels.

Images are fp32 RGB in [0, 1], [N, 3, 128, 128]; lengths are pixels, x to the right, y down from the upper left corner.
A shape's *radius* is that of the circle of equal area, so that it means the same for all; the caption never tells it.
"""

import colorsys
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

IMAGE_SIZE = 128
RADIUS_RANGE = (10.0, 44.0)
CENTRE_RANGE = (44.0, 84.0)
MARGIN = 1.0  # pixels left free between a sampled shape and the frame
FOREIGN = 0.06  # squared RGB distance from which on a pixel has neither of the caption's two colours

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.95, 0.8, 0.1),
    "purple": (0.6, 0.1, 0.7),
    "cyan": (0.1, 0.7, 0.8),
}
BACKGROUNDS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.1, 0.1, 0.1),
    "grey": (0.5, 0.5, 0.5),
    "beige": (0.85, 0.75, 0.6),
}

# Square and equilateral triangle of the unit circle's area.
SQUARE_HALF_SIDE = math.sqrt(math.pi) / 2
TRIANGLE_CIRCUMRADIUS = math.sqrt(4 * math.pi / (3 * math.sqrt(3)))
# How far a shape of radius 1 reaches from its centroid: to either side, up, down.
REACH = (
    (1.0, 1.0, 1.0),
    (SQUARE_HALF_SIDE, SQUARE_HALF_SIDE, SQUARE_HALF_SIDE),
    (TRIANGLE_CIRCUMRADIUS * math.sqrt(3) / 2, TRIANGLE_CIRCUMRADIUS, TRIANGLE_CIRCUMRADIUS / 2),
)


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes; all tensors on one device."""

    shape: Tensor  # [N] int64, index into SHAPES
    colour: Tensor  # [N] int64, index into COLOURS: what the caption says
    background: Tensor  # [N] int64, index into BACKGROUNDS
    x: Tensor  # [N] fp32, centroid in pixels
    y: Tensor  # [N]
    radius: Tensor  # [N] fp32, pixels
    paint: Tensor | None = None  # [N, 3] fp32 RGB in [0, 1]: what the shape is painted in instead of `colour`

    def __len__(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Measures:
    """What N pictures show, given what their captions say; each [N] fp32, NaN where a picture has nothing to measure."""

    radius: Tensor  # pixels: √(area / π) of the foreground, the pixels nearer the shape's colour than the background's
    x: Tensor  # pixels: centroid of the foreground
    y: Tensor
    colour_error: Tensor  # mean RGB distance of the foreground to the shape's colour
    hue: Tensor  # degrees in (-180, 180], 0 = red, 60 = yellow: that of the mean of all pixels unlike the background
    mess: Tensor  # share of pixels foreign to the caption: squared distance above FOREIGN to both of its colours


@cache
def table(values: tuple, device: torch.device) -> Tensor:
    """The constants as an fp32 tensor, one per device: a CUDA graph cannot capture a copy from the host."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def sample_scenes(count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Scenes:
    """Scenes drawn uniformly, every shape wholly inside the frame."""
    device = torch.device(device)

    def index(choices: int) -> Tensor:
        return torch.randint(choices, (count,), generator=generator, device=device)

    def uniform(low: Tensor | float, high: Tensor | float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    shape, colour, background = index(len(SHAPES)), index(len(COLOURS)), index(len(BACKGROUNDS))
    radius = uniform(*RADIUS_RANGE)
    aside, up, down = (table(REACH, device)[shape] * radius[:, None] + MARGIN).unbind(1)
    low, high = CENTRE_RANGE
    x = uniform(aside.clamp(min=low), (IMAGE_SIZE - aside).clamp(max=high))
    y = uniform(up.clamp(min=low), (IMAGE_SIZE - down).clamp(max=high))
    return Scenes(shape, colour, background, x, y, radius)


def caption(shape: str, colour: str, background: str) -> str:
    return f"a {colour} {shape} on a {background} background"


def captions(scenes: Scenes) -> list[str]:
    every = all_captions()
    return [every[index] for index in caption_index(scenes).tolist()]


def all_captions() -> list[str]:
    return [caption(shape, colour, background) for shape in SHAPES for colour in COLOURS for background in BACKGROUNDS]


def caption_index(scenes: Scenes) -> Tensor:
    """[N] int64: where each scene's caption stands in all_captions()."""
    return (scenes.shape * len(COLOURS) + scenes.colour) * len(BACKGROUNDS) + scenes.background


def words() -> list[str]:
    """Every word of every caption, once, in order of appearance."""
    return list(dict.fromkeys(" ".join(all_captions()).split()))


def foreground_rgb(scenes: Scenes) -> Tensor:
    """[N, 3]: the colour that the caption names."""
    return table(tuple(COLOURS.values()), scenes.shape.device)[scenes.colour]


def background_rgb(scenes: Scenes) -> Tensor:
    return table(tuple(BACKGROUNDS.values()), scenes.shape.device)[scenes.background]


def render(scenes: Scenes) -> Tensor:
    """Antialiased images [N, 3, 128, 128] in [0, 1], on the scenes' device."""
    x, y = pixel_centres(scenes.shape.device)
    distance = signed_distance(scenes, x - scenes.x[:, None, None], y - scenes.y[:, None, None])
    coverage = (0.5 - distance).clamp(0, 1)[:, None]  # [N, 1, H, W]
    paint = foreground_rgb(scenes) if scenes.paint is None else scenes.paint
    return coverage * paint[:, :, None, None] + (1 - coverage) * background_rgb(scenes)[:, :, None, None]


def pixel_centres(device: torch.device) -> tuple[Tensor, Tensor]:
    """x [1, 128] and y [128, 1]."""
    centres = torch.arange(IMAGE_SIZE, device=device) + 0.5
    return centres[None, :], centres[:, None]


def signed_distance(scenes: Scenes, dx: Tensor, dy: Tensor) -> Tensor:
    """[N, H, W] pixels to the outline, negative inside; near enough outside a corner, where only the sign counts."""
    radius, shape = scenes.radius[:, None, None], scenes.shape[:, None, None]
    circle = (dx.square() + dy.square()).sqrt() - radius
    square = torch.maximum(dx.abs(), dy.abs()) - SQUARE_HALF_SIDE * radius
    # The triangle's point is up; its three sides lie half a circumradius from the centroid.
    slanted = dx.abs() * (math.sqrt(3) / 2) - dy / 2
    triangle = torch.maximum(dy, slanted) - TRIANGLE_CIRCUMRADIUS / 2 * radius
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def measure(images: Tensor, scenes: Scenes, paint_range: tuple[tuple, tuple] | None = None) -> Measures:
    """What the images [N, 3, 128, 128] in [0, 1] show, held against the captions of the scenes.

    Where the paint varies on purpose (the attribute hue) the caption's colour is no yardstick: a pixel counts as rightly
    painted when it is near *any* mix of the two RGB ends in `paint_range`. From red to yellow, the hues at one
    saturation and value are exactly such a straight line: every hue between is clean, and what leaves it is mess.
    """
    images = images.float().to(scenes.shape.device)
    named = squared_distance(images, foreground_rgb(scenes))
    to_shape = named if paint_range is None else squared_distance_to_range(images, paint_range)
    to_background = squared_distance(images, background_rgb(scenes))
    foreground = (to_shape < to_background).float()
    area = foreground.sum((1, 2))
    x, y = pixel_centres(images.device)
    unlike_background = (to_background > FOREIGN).float()[:, None]
    foreign = (to_shape > FOREIGN) & (to_background > FOREIGN)
    return Measures(
        radius=(area / math.pi).sqrt(),
        x=(foreground * x).sum((1, 2)) / area,
        y=(foreground * y).sum((1, 2)) / area,
        colour_error=(foreground * to_shape.sqrt()).sum((1, 2)) / area,
        hue=hue_of((images * unlike_background).sum((2, 3)) / unlike_background.sum((2, 3))),
        mess=foreign.float().mean((1, 2)),
    )


def squared_distance(images: Tensor, rgb: Tensor) -> Tensor:
    """[N, H, W]: of every pixel to its image's colour [N, 3]."""
    return (images - rgb[:, :, None, None]).square().sum(1)


def squared_distance_to_range(images: Tensor, ends: tuple[tuple, tuple]) -> Tensor:
    """[N, H, W]: of every pixel to the nearest mix of two colours."""
    first, last = (table(end, images.device)[None, :, None, None] for end in ends)
    along = last - first
    share = ((images - first) * along).sum(1, keepdim=True) / along.square().sum()
    return (images - first - share.clamp(0, 1) * along).square().sum(1)


def hue_of(rgb: Tensor) -> Tensor:
    """Degrees in (-180, 180] of colours [N, 3]: the hue of HSV, with red in the middle so that it does not wrap."""
    red, green, blue = rgb.unbind(1)
    highest, chroma = rgb.amax(1), rgb.amax(1) - rgb.amin(1)
    sector = torch.where(
        highest == red,
        (green - blue) / chroma,
        torch.where(highest == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma),
    )
    degrees = 60 * sector
    return torch.where(degrees > 180, degrees - 360, degrees)


def rgb_at_hue(degrees: float) -> tuple[float, float, float]:
    """The world's red turned to another hue, at its own saturation and value."""
    _, saturation, value = colorsys.rgb_to_hsv(*COLOURS["red"])
    return colorsys.hsv_to_rgb(degrees / 360 % 1.0, saturation, value)

"""The shapes world: draws one coloured shape on a plain background from known parameters, and measures them in images.

Images are fp32 RGB in [0, 1], [N, 3, 128, 128]. Lengths are in pixels, x to the right and y down from the top left corner.
The *radius* of any shape is that of the circle of equal area. Captions never mention it.
"""

import colorsys
import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

IMAGE_SIZE = 128
RADIUS_RANGE = (10.0, 44.0)
CENTRE_RANGE = (44.0, 84.0)
MARGIN = 1.0  # pixels left free between a sampled shape and the frame
HOLE_REACH = 0.6  # fraction of the shape's radius within which holes are measured
FOREIGN = 0.06  # squared RGB distance beyond which a pixel does not have a colour

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

# A square and an equilateral triangle with the area of the unit circle
SQUARE_HALF_SIDE = math.sqrt(math.pi) / 2
TRIANGLE_CIRCUMRADIUS = math.sqrt(4 * math.pi / (3 * math.sqrt(3)))
# How far a shape of radius 1 extends from its centroid: to either side, up, down
REACH = (
    (1.0, 1.0, 1.0),
    (SQUARE_HALF_SIDE, SQUARE_HALF_SIDE, SQUARE_HALF_SIDE),
    (TRIANGLE_CIRCUMRADIUS * math.sqrt(3) / 2, TRIANGLE_CIRCUMRADIUS, TRIANGLE_CIRCUMRADIUS / 2),
)


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes, with all tensors on one device."""

    shape: Tensor  # [N] int64, index into SHAPES
    colour: Tensor  # [N] int64, index into COLOURS: the colour in the caption
    background: Tensor  # [N] int64, index into BACKGROUNDS
    x: Tensor  # [N] fp32, centroid in pixels
    y: Tensor  # [N]
    radius: Tensor  # [N] fp32, pixels
    paint: Tensor | None = None  # [N, 3] fp32 RGB in [0, 1]: the colour to paint the shape in, instead of `colour`
    stretch: Tensor | None = None  # [N] fp32, width over height, which leaves the area unchanged; None: 1
    hole: Tensor | None = None  # [N] fp32, pixels: radius of a round hole around the centroid; None: no hole

    def __len__(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Measures:
    """Measurements of N images, given their captions. Each is [N] fp32 unless noted, and NaN if an image does not show it."""

    radius: Tensor  # pixels: √(area / π) of the foreground: pixels nearer to the shape's than the background's colour
    x: Tensor  # pixels: centroid of the foreground
    y: Tensor
    colour_error: Tensor  # mean RGB distance of the foreground from the shape's colour
    colour: Tensor  # [N, 3]: mean RGB of the foreground
    hue: Tensor  # degrees in (-180, 180], 0 = red, 60 = yellow: that of the mean of all pixels beyond FOREIGN from the background
    stretch: Tensor  # horizontal over vertical standard deviation of the foreground: 1 for an unstretched shape
    hole: Tensor  # pixels: √(area / π) of the background within HOLE_REACH × radius of the centroid
    shape: Tensor  # intersection over union with the caption's ideal shape, of the measured size and position
    mess: Tensor  # share of pixels that are beyond FOREIGN from both of the caption's colours


@cache
def table(values: tuple, device: torch.device) -> Tensor:
    """Constants as an fp32 tensor. Cached per device, because a CUDA graph cannot capture a copy from the host."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def sample_scenes(count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Scenes:
    """Draws scenes uniformly, with every shape entirely inside the frame."""
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
    """[N] int64: the index of each scene's caption in `all_captions()`."""
    return (scenes.shape * len(COLOURS) + scenes.colour) * len(BACKGROUNDS) + scenes.background


def words() -> list[str]:
    """The words of all captions, each once, in order of appearance."""
    return list(dict.fromkeys(" ".join(all_captions()).split()))


def foreground_rgb(scenes: Scenes) -> Tensor:
    """[N, 3]: the colour named in the caption."""
    return table(tuple(COLOURS.values()), scenes.shape.device)[scenes.colour]


def background_rgb(scenes: Scenes) -> Tensor:
    return table(tuple(BACKGROUNDS.values()), scenes.shape.device)[scenes.background]


def render(scenes: Scenes) -> Tensor:
    """Antialiased images [N, 3, 128, 128] in [0, 1], on the scenes' device."""
    x, y = pixel_centres(scenes.shape.device)
    dx, dy = x - scenes.x[:, None, None], y - scenes.y[:, None, None]
    coverage = (0.5 - signed_distance(scenes, dx, dy)).clamp(0, 1)[:, None]  # [N, 1, H, W]
    if scenes.hole is not None:
        from_centroid = (dx.square() + dy.square()).sqrt() - scenes.hole[:, None, None]
        coverage = coverage * (0.5 + from_centroid).clamp(0, 1)[:, None]
    paint = foreground_rgb(scenes) if scenes.paint is None else scenes.paint
    return coverage * paint[:, :, None, None] + (1 - coverage) * background_rgb(scenes)[:, :, None, None]


def pixel_centres(device: torch.device) -> tuple[Tensor, Tensor]:
    """x [1, 128] and y [128, 1]."""
    centres = torch.arange(IMAGE_SIZE, device=device) + 0.5
    return centres[None, :], centres[:, None]


def signed_distance(scenes: Scenes, dx: Tensor, dy: Tensor) -> Tensor:
    """[N, H, W]: distance to the outline in pixels, negative inside. Approximate outside of corners."""
    radius, shape = scenes.radius[:, None, None], scenes.shape[:, None, None]
    if scenes.stretch is not None:
        root = scenes.stretch.sqrt()[:, None, None]
        dx, dy = dx / root, dy * root
    circle = (dx.square() + dy.square()).sqrt() - radius
    square = torch.maximum(dx.abs(), dy.abs()) - SQUARE_HALF_SIDE * radius
    # The triangle points up, and its sides are half a circumradius away from the centroid.
    slanted = dx.abs() * (math.sqrt(3) / 2) - dy / 2
    triangle = torch.maximum(dy, slanted) - TRIANGLE_CIRCUMRADIUS / 2 * radius
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def measure(
    images: Tensor,
    scenes: Scenes,
    paint_range: tuple[tuple, ...] | None = None,
    stretched: bool = False,
    filled: bool = False,
) -> Measures:
    """Measures images [N, 3, 128, 128] in [0, 1] against the captions of the scenes.

    paint_range: RGB colours, for an attribute that varies the shape's colour. Any mix of two neighbours then counts as the
    shape's colour; from red to yellow, the hues of equal saturation and value are exactly these mixes. stretched: the
    ideal shape is stretched like the measured one. filled: position, size and shape are measured with holes filled.
    """
    images = images.float().to(scenes.shape.device)
    named = squared_distance(images, foreground_rgb(scenes))
    to_shape = named if paint_range is None else squared_distance_to_range(images, paint_range)
    to_background = squared_distance(images, background_rgb(scenes))
    foreground = (to_shape < to_background).float()
    silhouette = _rows_filled(foreground) if filled else foreground
    area, x, y, stretch = _moments(silhouette)
    radius = (area / math.pi).sqrt()
    unlike_background = (to_background > FOREIGN).float()[:, None]
    foreign = (to_shape > FOREIGN) & (to_background > FOREIGN)
    ideal = replace(scenes, x=x, y=y, radius=radius, stretch=stretch.nan_to_num(1).clamp(0.2, 5) if stretched else None)
    return Measures(
        radius=radius,
        x=x,
        y=y,
        colour_error=(foreground * to_shape.sqrt()).sum((1, 2)) / foreground.sum((1, 2)),
        colour=(images * foreground[:, None]).sum((2, 3)) / foreground.sum((1, 2))[:, None],
        hue=hue_of((images * unlike_background).sum((2, 3)) / unlike_background.sum((2, 3))),
        stretch=stretch,
        hole=_hole(foreground, x, y, radius),
        shape=_overlap(silhouette, ideal),
        mess=foreign.float().mean((1, 2)),
    )


def _moments(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mask [N, H, W] of 0 and 1 → area, centroid x and y, horizontal over vertical deviation; NaN if the area is 0."""
    across, up = pixel_centres(mask.device)
    area = mask.sum((1, 2))
    x, y = (mask * across).sum((1, 2)) / area, (mask * up).sum((1, 2)) / area
    variances = (
        (mask * (axis - centre[:, None, None]).square()).sum((1, 2)) for axis, centre in ((across, x), (up, y))
    )
    return area, x, y, torch.div(*variances).sqrt()


def _rows_filled(mask: Tensor) -> Tensor:
    """Fills each row between its first and last pixel."""
    return mask.cummax(2).values * mask.flip(2).cummax(2).values.flip(2)


def _hole(foreground: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    across, up = pixel_centres(foreground.device)
    distance = ((across - x[:, None, None]).square() + (up - y[:, None, None]).square()).sqrt()
    inside = (distance < HOLE_REACH * radius[:, None, None]).float()
    return ((inside * (1 - foreground)).sum((1, 2)) / math.pi).sqrt()


def _overlap(mask: Tensor, ideal: Scenes) -> Tensor:
    """Intersection over union of mask [N, H, W] with the shapes of the ideal scenes; NaN where their position is NaN."""
    across, up = pixel_centres(mask.device)
    wanted = signed_distance(ideal, across - ideal.x[:, None, None], up - ideal.y[:, None, None]) < 0
    shown = mask > 0.5
    overlap = (wanted & shown).sum((1, 2)) / (wanted | shown).sum((1, 2)).clamp(min=1)
    return torch.where(ideal.x.isnan(), ideal.x, overlap)


def squared_distance(images: Tensor, rgb: Tensor) -> Tensor:
    """[N, H, W]: squared RGB distance of each pixel from the colour [N, 3] of its image."""
    return (images - rgb[:, :, None, None]).square().sum(1)


def squared_distance_to_range(images: Tensor, colours: tuple[tuple, ...]) -> Tensor:
    """[N, H, W]: squared RGB distance of each pixel from the nearest mix of two neighbouring colours."""
    corners = [table(colour, images.device)[None, :, None, None] for colour in colours]
    distances = []
    for first, last in pairwise(corners):
        along = last - first
        share = ((images - first) * along).sum(1, keepdim=True) / along.square().sum()
        distances.append((images - first - share.clamp(0, 1) * along).square().sum(1))
    return torch.stack(distances).amin(0)


def hue_of(rgb: Tensor) -> Tensor:
    """HSV hue of colours [N, 3], in degrees in (-180, 180], so that it does not wrap around at red."""
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
    """The world's red at another hue, with the same saturation and value."""
    _, saturation, value = colorsys.rgb_to_hsv(*COLOURS["red"])
    return colorsys.hsv_to_rgb(degrees / 360 % 1.0, saturation, value)

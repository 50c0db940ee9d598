"""What can be done to a picture: frost, another hue, blur. Each is a function of (pictures, mask, amount).

pictures [N, 3, H, W] fp32 in [0, 1]; mask [N, 1, H, W] in [0, 1]: how much of a pixel is the object; amount [N], 0 for
unchanged. They run on any device and inside a CUDA graph.
"""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
# Colour differences: two axes at right angles in which turning a colour changes its hue and keeps its luma.
TO_CHROMA = ((0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
FROM_CHROMA = ((0.956, 0.619), (-0.272, -0.647), (-1.106, 1.703))
ICE = (0.86, 0.93, 0.98)
CRACK = (0.62, 0.78, 0.9)
BLUR_REACH = 10  # px on each side of a pixel that blurring takes in
FROST_TILE = 128  # px


def frost(pictures: Tensor, mask: Tensor, amount: Tensor) -> Tensor:
    """Covers the object with ice. amount: 0 to 1, at which it hides nine tenths of the colours."""
    texture = frost_texture(pictures.device)
    cover = mask * amount[:, None, None, None] * texture[3:]
    return pictures + cover * (texture[:3] - pictures)


def turn_hue(pictures: Tensor, mask: Tensor, amount: Tensor) -> Tensor:
    """Turns the object's colours. amount: degrees; 120 makes red green."""
    to, back = constant(TO_CHROMA, pictures.device), constant(FROM_CHROMA, pictures.device)
    first, second = torch.einsum("cr,nrhw->cnhw", to, pictures)
    angle = -torch.deg2rad(amount)[:, None, None]
    turned = torch.stack(
        [first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()]
    ) - torch.stack([first, second])
    return (pictures + mask * torch.einsum("rc,cnhw->nrhw", back, turned)).clamp(0, 1)


def blur(pictures: Tensor, mask: Tensor, amount: Tensor) -> Tensor:
    """Blurs the whole picture, its background too. amount: standard deviation of a Gaussian in px; below 0.1 nothing changes."""
    reach = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=pictures.device)
    weights = torch.exp(-0.5 * (reach / amount.clamp(min=0.1)[:, None]).square())
    kernel = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]  # [3 N, 1, taps]
    count, _, height, width = pictures.shape
    padded = F.pad(pictures, (BLUR_REACH,) * 4, mode="replicate").reshape(1, 3 * count, height + 2 * BLUR_REACH, -1)
    rows = F.conv2d(padded, kernel[..., None], groups=3 * count)
    return F.conv2d(rows, kernel[:, :, None], groups=3 * count).reshape(count, 3, height, width)


CHANGES = {"frost": frost, "hue": turn_hue, "blur": blur}  # in this order


@cache
def constant(values: tuple, device: torch.device) -> Tensor:
    """As fp32. Cached per device, because a CUDA graph cannot capture a copy from the host."""
    return torch.tensor(values, dtype=torch.float32, device=device)


@cache
def frost_texture(device: torch.device) -> Tensor:
    """[4, FROST_TILE, FROST_TILE] fp32: colour and cover of ice, drawn with Pillow: cloudy, with needles that branch."""
    rng = np.random.default_rng(0)
    cloud = np.zeros((FROST_TILE, FROST_TILE), dtype=np.float32)
    for cells, share in ((4, 0.5), (16, 0.3), (64, 0.2)):
        noise = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        cloud += share * np.asarray(noise.resize((FROST_TILE, FROST_TILE), Image.Resampling.BICUBIC)) / 255
    needles = Image.new("L", (2 * FROST_TILE, 2 * FROST_TILE))  # drawn at twice the size, for smooth lines
    draw = ImageDraw.Draw(needles)
    for x, y, direction, length in zip(
        rng.uniform(0, 256, 90),
        rng.uniform(0, 256, 90),
        rng.uniform(0, math.tau, 90),
        rng.uniform(14, 40, 90),
        strict=True,
    ):
        for side in range(6):
            _needle(draw, x, y, direction + side * math.tau / 6, length)
    lines = np.asarray(needles.resize((FROST_TILE, FROST_TILE), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    colour = np.array(ICE) + lines[..., None] * (np.array(CRACK) - np.array(ICE))
    cover = 0.9 * np.clip(0.55 + 0.6 * (cloud - 0.5) + 0.4 * lines, 0, 1)
    stacked = np.concatenate([colour, cover[..., None]], axis=2).transpose(2, 0, 1)
    return torch.from_numpy(stacked.astype(np.float32)).to(device)


def _needle(draw: ImageDraw.ImageDraw, x: float, y: float, direction: float, length: float) -> None:
    """A line from the middle of a crystal, with two branches."""
    end = (x + length * math.cos(direction), y + length * math.sin(direction))
    draw.line((x, y, *end), fill=255, width=2)
    middle = (x + 0.6 * length * math.cos(direction), y + 0.6 * length * math.sin(direction))
    for side in (-1, 1):
        leaning = direction + side * math.tau / 6
        draw.line(
            (*middle, middle[0] + 0.3 * length * math.cos(leaning), middle[1] + 0.3 * length * math.sin(leaning)),
            fill=200,
        )

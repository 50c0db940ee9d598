"""What is seen in a picture whose caption is known: the background, the emoji's place and size, and which of the name's pictures it is.

Measures start from here: the true pictures of the name are drawn at the same place, on the same background, and compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from emojiworld.pictures import Pictures
from emojiworld.world import IMAGE_SIZE, Scenes, fade, pixel_centres, render

RING = 3  # px along the frame that show the background
SEEN = 0.08  # largest difference of a channel from the background from which on a pixel may belong to the emoji
HAZE = 0.35  # less than this share of the strongest differences is what a VAE leaves around an emoji
FEWEST = 2  # pixels that a row or column needs to count as part of the emoji
CELL = 4  # px: pictures are compared after averaging over cells of this side
PATHS = {"style": (0.0, 1.0), "tone": (1.0, 2.0, 3.0, 4.0, 5.0)}  # values between whose pictures others may lie
LIMITS = {  # of what a true picture can be drawn with
    "size": (8.0, 256.0),
    "tone": (1.0, 5.0),
    "style": (0.0, 1.0),
    "frost": (0.0, 1.0),
    "hue": (-180.0, 180.0),
    "blur": (0.0, 8.0),
}
STARTS = 2  # rounds of choosing among the name's pictures and moving the choice to its place
ROUNDS = 3  # of reading the attribute and what else may differ
ALIGNMENTS = 4  # steps in each
NUDGES = (0.5, 0.5, 0.01)  # px, px and share: by how much place and size are changed to see what that does
FARTHEST = (4.0, 4.0, 0.1)  # the same for one step of an alignment
DAMPING = 0.02
AT_ONCE = 32  # pictures looked at together


@dataclass(frozen=True)
class Seen:
    """N pictures as they were seen. Where nothing was seen, `scenes` fill the frame."""

    background: Tensor  # [N, 3, H, W]: a slope fitted to the frame's pixels
    mask: Tensor  # [N, 1, H, W] in [0, 1]: what differs from it
    values: Tensor  # [N] fp32: what was read, in the attribute's unit; NaN where nothing was seen
    scenes: Scenes  # the true scenes that come nearest, the attribute included

    def __len__(self) -> int:
        return len(self.values)

    def drawn(self, pictures: Pictures) -> Tensor:
        """[N, 3, H, W]: the nearest true pictures, at the same place and on the same background."""
        return render(self.scenes, pictures, self.background)

    def having(self, field: str, values: Tensor | float) -> "Seen":
        """The nearest scenes with another value of a field, held within LIMITS; where it is NaN, at the lower limit."""
        values = torch.as_tensor(values, device=self.values.device).expand(len(self))
        values = values.nan_to_num(LIMITS[field][0]).clamp(*LIMITS[field])
        return replace(self, scenes=self.scenes.having(field, values))

    def renamed(self, names: Tensor) -> "Seen":
        """The nearest scenes with other names, [N] int64."""
        return replace(self, scenes=replace(self.scenes, name=names))


View = Callable[[Tensor], Tensor]  # images [N, 3, H, W] → what of them is compared, [N, …]
Read = Callable[[Tensor, Seen, Pictures], Tensor]  # images [N, 3, H, W] → [N] fp32


def look(images: Tensor, captioned: Scenes, pictures: Pictures, field: str, read: Read) -> Seen:
    """images [N, 3, 128, 128] in [0, 1]; captioned: scenes with the names of their captions; field: what is to be read by `read`.

    Place, size, style, tone and the field are found in turn, each with the others as they were found before.
    """
    parts = []
    for start in range(0, len(images), AT_ONCE):
        rows = torch.arange(start, min(start + AT_ONCE, len(images)), device=images.device)
        parts.append(_look(images[rows], captioned.chosen(rows), pictures, field, read))
    tensors = ("background", "mask", "values")
    return Seen(
        *(torch.cat([getattr(part, name) for part in parts]) for name in tensors),
        scenes=Scenes.joined([part.scenes for part in parts]),
    )


def _look(images: Tensor, captioned: Scenes, pictures: Pictures, field: str, read: Read) -> Seen:
    background = fitted_background(images)
    mask = unlike(images, background)
    found = box(mask)
    empty = found[2].isnan()
    half = torch.full_like(found[2], IMAGE_SIZE / 2)
    x, y, size = torch.where(empty, torch.stack([half, half, 2 * half]), found)
    scenes = replace(captioned, x=x, y=y, size=size, changes={})
    seen = Seen(background, mask, size, scenes)
    for _ in range(STARTS):
        seen = aligned(images, replace(seen, scenes=_nearest(images, seen.scenes, background, pictures)), pictures)
    for _ in range(ROUNDS):
        for nuisance, path in PATHS.items():
            if nuisance != field:
                seen = seen.having(nuisance, along_path(images, seen, nuisance, path, pictures))
        values = read(images, seen, pictures)
        seen = aligned(images, replace(seen.having(field, values), values=values), pictures)
    values = read(images, seen, pictures)
    return replace(seen.having(field, values), values=torch.where(empty, torch.nan, values))


def aligned(images: Tensor, seen: Seen, pictures: Pictures) -> Seen:
    """The seen scenes moved and resized to where their pictures come nearest to the images: Levenberg and Marquardt's method."""
    wanted, faded = cells(images).flatten(1), fade(seen.scenes, pictures)
    scenes, damping = seen.scenes, torch.full_like(seen.scenes.x, DAMPING)

    def off(tried: Scenes) -> Tensor:
        return wanted - cells(render(tried, pictures, seen.background, faded)).flatten(1)

    error = off(scenes)  # [N, D]
    for _ in range(ALIGNMENTS):
        slopes = [(off(_moved(scenes, i, nudge)) - error) / nudge for i, nudge in enumerate(NUDGES)]
        jacobian = torch.stack(slopes, 2)  # [N, D, 3]
        normal = jacobian.mT @ jacobian
        normal = normal + torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2) + 1e-9)
        steps = -torch.linalg.solve(normal, (jacobian.mT @ error[..., None])[..., 0])
        tried = scenes
        for i, farthest in enumerate(FARTHEST):
            tried = _moved(tried, i, steps[:, i].clamp(-farthest, farthest))
        remaining = off(tried)
        better = remaining.square().sum(1) < error.square().sum(1)
        scenes = Scenes.where(better, tried, scenes)
        error = torch.where(better[:, None], remaining, error)
        damping = torch.where(better, damping / 4, damping * 10)
    return replace(seen, scenes=scenes)


def _moved(scenes: Scenes, which: int, by: Tensor | float) -> Scenes:
    """The scenes with another x or y, by px, or size, by a share of it."""
    if which == 2:
        return replace(scenes, size=(scenes.size * (1 + by)).clamp(*LIMITS["size"]))
    name = ("x", "y")[which]
    return replace(scenes, **{name: getattr(scenes, name) + by})


def fitted_background(images: Tensor) -> Tensor:
    """[N, 3, H, W]: for each channel a level and a slope, fitted to the frame's pixels, most of which are background."""
    x, y = pixel_centres(images.device)
    axes = [axis.expand(IMAGE_SIZE, IMAGE_SIZE) / (IMAGE_SIZE / 2) - 1 for axis in (x, y)]
    terms = torch.stack([torch.ones_like(axes[0]), *axes])  # [3, H, W]
    ring = _ring(images.device)
    design, wanted = terms[:, ring], images[:, :, ring]  # [3, P], [N, 3, P]
    weight = torch.ones_like(wanted)
    for _ in range(8):  # towards the smallest sum of absolute errors, which pixels of the emoji hardly move
        normal = torch.einsum("ip,ncp,jp->ncij", design, weight, design)
        sides = torch.einsum("ip,ncp->nci", design, weight * wanted)
        solution = torch.linalg.solve(normal, sides)
        weight = 1 / ((wanted - solution @ design).abs() + 0.004)
    return torch.einsum("nci,ihw->nchw", solution, terms).clamp(0, 1)


@cache
def _ring(device: torch.device) -> Tensor:
    inside = torch.zeros(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool, device=device)
    inside[RING:-RING, RING:-RING] = True
    return ~inside


def unlike(images: Tensor, background: Tensor) -> Tensor:
    """[N, 1, H, W] in [0, 1]: which pixels differ from the background."""
    difference = (images - background).abs().amax(1, keepdim=True)
    strongest = difference.flatten(1).quantile(0.98, 1)[:, None, None, None]
    return (difference / (HAZE * strongest).clamp(min=SEEN) - 0.5).clamp(0, 1)


def box(mask: Tensor) -> Tensor:
    """mask [N, 1, H, W] → [3, N] fp32 in px: middle x, middle y and long side of what it covers; NaN if that is nothing."""
    shown = mask[:, 0] > 0.5
    (left, right), (top, bottom) = (_ends(shown.sum(axis) >= FEWEST) for axis in (1, 2))
    found = torch.stack([(left + right) / 2, (top + bottom) / 2, torch.maximum(right - left, bottom - top)])
    return torch.where(right > left, found, torch.nan)


def _ends(lines: Tensor) -> tuple[Tensor, Tensor]:
    """lines [N, L] bool → where the first true one begins and the last one ends, [N] fp32; 0 and 0 if none is true."""
    places = torch.arange(lines.shape[1], device=lines.device)
    first = torch.where(lines, places, lines.shape[1]).amin(1)
    last = torch.where(lines, places + 1, 0).amax(1)
    return torch.minimum(first, last).float(), last.float()


def _nearest(images: Tensor, scenes: Scenes, background: Tensor, pictures: Pictures) -> Scenes:
    """Of flat and rendered, mirrored and not, of each tone: what comes nearest."""
    options = [(mirror, style, tone) for mirror in (False, True) for style in (0.0, 1.0) for tone in PATHS["tone"]]
    best, chosen = torch.full_like(scenes.x, torch.inf), scenes
    for mirror, style, tone in options:
        tried = replace(
            scenes,
            mirror=torch.full_like(scenes.mirror, mirror) & pictures.mirrored[scenes.name],
            style=torch.full_like(scenes.x, style),
            tone=torch.full_like(scenes.x, tone),
        )
        error = (cells(render(tried, pictures, background)) - cells(images)).square().flatten(1).mean(1)
        better = error < best
        best = torch.where(better, error, best)
        chosen = Scenes.where(better, tried, chosen)
    return chosen


def cells(images: Tensor) -> Tensor:
    """[N, C, H, W] → means over cells, [N, C, H / CELL, W / CELL]."""
    return F.avg_pool2d(images, CELL)


def along_path(
    images: Tensor, seen: Seen, field: str, values: tuple[float, ...], pictures: Pictures, view: View = cells
) -> Tensor:
    """[N]: where the images lie on the path of true pictures from the first of `values` of a field to the last, and beyond.

    Between two neighbours, an image lies where its nearest point on the straight line between their views does.
    """
    path = torch.stack([view(seen.having(field, value).drawn(pictures)).flatten(1) for value in values])  # [K, N, D]
    return project(view(images).flatten(1), path, torch.tensor(values, device=images.device))


def project(points: Tensor, path: Tensor, values: Tensor) -> Tensor:
    """points [N, D], path [K, N, D], values [K] → [N]: the value at the nearest place on the path; its ends are extended."""
    starts, steps = path[:-1], path[1:] - path[:-1]
    share = ((points - starts) * steps).sum(2) / steps.square().sum(2).clamp(min=1e-12)  # [K - 1, N]
    low, high = torch.zeros_like(share), torch.ones_like(share)
    low[0], high[-1] = -torch.inf, torch.inf
    share = share.clamp(low, high)
    errors = (starts + share[..., None] * steps - points).square().sum(2)
    nearest = errors.argmin(0)
    rows = torch.arange(len(points), device=points.device)
    return values[nearest] + share[nearest, rows] * (values[nearest + 1] - values[nearest])

"""The emoji world: pictures of one emoji on a plain or graded background, from known parameters.

Images are fp32 RGB in [0, 1], [N, 3, 128, 128]. Lengths are in pixels, x to the right and y down from the top left corner.
A caption names the emoji and the background's colour, nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from emojiworld.changes import CHANGES, constant
from emojiworld.pictures import SPRITE, TONES, Pictures

IMAGE_SIZE = 128
SIZE_RANGE = (56.0, 104.0)  # px, the long side of the emoji
MARGIN = 4.0  # px left free between an emoji and the frame
SLOPE = 0.12  # how much brighter or darker a graded background is at an edge than in the middle, at most
RARE = 0.06  # share of the drawn scenes with frost, share with another hue, and share with blur
RARE_RANGE = {"frost": (0.1, 1.0), "hue": (-75.0, 75.0), "blur": (0.5, 4.0)}

BACKGROUNDS = {
    "white": (0.95, 0.95, 0.95),
    "grey": (0.55, 0.55, 0.55),
    "black": (0.12, 0.12, 0.12),
    "blue": (0.35, 0.5, 0.85),
    "green": (0.4, 0.72, 0.45),
    "purple": (0.58, 0.42, 0.78),
}


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes, with all tensors on one device."""

    name: Tensor  # [N] int64, index into the pictures' names
    background: Tensor  # [N] int64, index into BACKGROUNDS
    x: Tensor  # [N] fp32, px: middle of the emoji
    y: Tensor
    size: Tensor  # [N] fp32, px: long side of what is opaque in the emoji
    mirror: Tensor  # [N] bool
    slope: Tensor  # [N, 2] fp32: how much brighter the right and the lower edge are than the middle
    tone: Tensor  # [N] fp32 in [1, 5]: light to dark skin; between two pictures one fades into the other
    style: Tensor  # [N] fp32 in [0, 1]: flat to rendered
    changes: dict[str, Tensor] = field(default_factory=dict)  # {key of CHANGES: [N] fp32}; a missing one: unchanged

    def __len__(self) -> int:
        return len(self.name)

    def having(self, what: str, value: Tensor) -> "Scenes":
        """The same scenes with another `size`, `tone`, `style` or change."""
        if what in CHANGES:
            return replace(self, changes={**self.changes, what: value})
        return replace(self, **{what: value})

    def value(self, what: str) -> Tensor:
        """[N] fp32: `size`, `tone`, `style` or a change that all of the scenes have."""
        return self.changes[what] if what in CHANGES else getattr(self, what)

    def chosen(self, rows: Tensor) -> "Scenes":
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Scenes":
        return self._each(lambda tensor: tensor.to(device))

    @classmethod
    def joined(cls, parts: Sequence["Scenes"]) -> "Scenes":
        """The scenes of all parts, which have the same changes."""
        return cls._together(torch.cat, parts)

    @classmethod
    def where(cls, first: Tensor, scenes: "Scenes", others: "Scenes") -> "Scenes":
        """first [N] bool: whether to take a row of `scenes` or of `others`, which have the same changes."""

        def pick(pair: list[Tensor]) -> Tensor:
            return torch.where(first.view(-1, *[1] * (pair[0].dim() - 1)), *pair)

        return cls._together(pick, [scenes, others])

    @classmethod
    def _together(cls, of: Callable[[list[Tensor]], Tensor], parts: Sequence["Scenes"]) -> "Scenes":
        names = [name for name in vars(parts[0]) if name != "changes"]
        return cls(
            **{name: of([getattr(part, name) for part in parts]) for name in names},
            changes={name: of([part.changes[name] for part in parts]) for name in parts[0].changes},
        )

    def _each(self, of: Callable[[Tensor], Tensor]) -> "Scenes":
        return self._together(lambda tensors: of(tensors[0]), [self])


def sample_scenes(pictures: Pictures, count: int, generator: torch.Generator | None = None) -> Scenes:
    """Draws scenes on the pictures' device, with every emoji entirely inside the frame. Names with skin tones come twice as often.

    Two fifths of the scenes are flat, two fifths rendered, the others between; frost, hue and blur are rare.
    """
    device = pictures.sprites.device

    def uniform(low: Tensor | float = 0.0, high: Tensor | float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    weights = 1.0 + pictures.toned.float()
    ends = weights.cumsum(0)
    name = torch.searchsorted(ends, uniform() * ends[-1]).clamp(max=len(pictures) - 1)
    size = uniform(*SIZE_RANGE)
    half = size / 2 + MARGIN
    graded = (uniform() < 0.5).float()
    changes = {
        change: torch.where(uniform() < RARE, uniform(*RARE_RANGE[change]), torch.zeros_like(size))
        for change in CHANGES
    }
    return Scenes(
        name=name,
        background=(uniform() * len(BACKGROUNDS)).long().clamp(max=len(BACKGROUNDS) - 1),
        x=uniform(half, IMAGE_SIZE - half),
        y=uniform(half, IMAGE_SIZE - half),
        size=size,
        mirror=(uniform() < 0.5) & pictures.mirrored[name],
        slope=torch.stack([uniform(-SLOPE, SLOPE) * graded, uniform(-SLOPE, SLOPE) * graded], dim=1),
        tone=uniform(1.0, float(TONES)),
        style=(uniform() * 5 - 2).clamp(0, 1),
        changes=changes,
    )


def caption(name: str, background: str) -> str:
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name} on a {background} background"


def captions(scenes: Scenes, pictures: Pictures) -> list[str]:
    every = all_captions(pictures)
    return [every[index] for index in caption_index(scenes).tolist()]


def all_captions(pictures: Pictures) -> list[str]:
    return [caption(name, background) for name in pictures.names for background in BACKGROUNDS]


def caption_index(scenes: Scenes) -> Tensor:
    """[N] int64: the index of each scene's caption in `all_captions()`."""
    return scenes.name * len(BACKGROUNDS) + scenes.background


def words(pictures: Pictures) -> list[str]:
    """The words of all captions, each once, in order of appearance."""
    return list(dict.fromkeys(" ".join(all_captions(pictures)).split()))


def render(scenes: Scenes, pictures: Pictures, background: Tensor | None = None, faded: Tensor | None = None) -> Tensor:
    """Images [N, 3, 128, 128] in [0, 1], on the scenes' device.

    background: [N, 3, 128, 128], to take instead of the scenes' own. faded: what `fade` returned for them, or for scenes
    that differ in place, size or mirror alone.
    """
    if background is None:
        background = backgrounds(scenes)
    emoji = placed(scenes, pictures, fade(scenes, pictures) if faded is None else faded)
    mask = emoji[:, 3:]
    images = emoji[:, :3] + (1 - mask) * background
    for name, change in CHANGES.items():
        if name in scenes.changes:
            images = change(images, mask, scenes.changes[name])
    return images


def backgrounds(scenes: Scenes) -> Tensor:
    """[N, 3, 128, 128] in [0, 1]."""
    device = scenes.x.device
    colour = constant(tuple(BACKGROUNDS.values()), device)[scenes.background]
    x, y = pixel_centres(device)
    across, down = (axis / (IMAGE_SIZE / 2) - 1 for axis in (x, y))
    brighter = scenes.slope[:, 0, None, None] * across + scenes.slope[:, 1, None, None] * down
    return (colour[:, :, None, None] + brighter[:, None]).clamp(0, 1)


def placed(scenes: Scenes, pictures: Pictures, faded: Tensor) -> Tensor:
    """The emoji alone, [N, 4, 128, 128]: premultiplied RGB and alpha in [0, 1]. faded: what `fade` returned."""
    frame = pictures.frame[scenes.name]
    x, y = pixel_centres(scenes.x.device)
    per_pixel = frame[:, 2] / scenes.size  # shares of the sprite's side
    across = (x - scenes.x[:, None, None]) * per_pixel[:, None, None]
    across = torch.where(scenes.mirror[:, None, None], -across, across) + frame[:, 0, None, None]
    down = (y - scenes.y[:, None, None]) * per_pixel[:, None, None] + frame[:, 1, None, None]
    grid = torch.stack(torch.broadcast_tensors(across, down), dim=-1) * 2 - 1
    return F.grid_sample(faded, grid, mode="bilinear", align_corners=False)


def fade(scenes: Scenes, pictures: Pictures) -> Tensor:
    """[N, 4, SPRITE, SPRITE] in [0, 1]: the four pictures around a style and a tone, faded into each other."""
    lower = (scenes.tone.floor().long() - 1).clamp(0, TONES - 2)
    darker = scenes.tone - 1 - lower
    found = torch.zeros(len(scenes), 4, SPRITE, SPRITE, device=scenes.x.device)
    for style, shown in ((0, 1 - scenes.style), (1, scenes.style)):
        for tone, share in ((lower, 1 - darker), (lower + 1, darker)):
            sprites = pictures.sprites[pictures.index[scenes.name, style, tone]]
            found += sprites * (shown * share / 255)[:, None, None, None]
    return found


def pixel_centres(device: torch.device) -> tuple[Tensor, Tensor]:
    """x [1, 128] and y [128, 1]."""
    centres = torch.arange(IMAGE_SIZE, device=device) + 0.5
    return centres[None, :], centres[:, None]

"""What a slider can be trained on and measured by: which folder shows what, at which scale, and how much is wanted."""

import random
from dataclasses import dataclass

import torch
from worlds.base import Attribute

from emojiworld.changes import CHANGES, TO_CHROMA, constant
from emojiworld.looking import LIMITS, Read
from emojiworld.pictures import Pictures
from emojiworld.reading import READERS, Level
from emojiworld.world import BACKGROUNDS, IMAGE_SIZE, MARGIN, SIZE_RANGE, SLOPE, Scenes

TRAINING_COUNT = 24
EVALUATION_COUNT = 16
EVALUATION_SEEDS = tuple(range(1000, 1000 + EVALUATION_COUNT))  # the noise of each evaluation scene's picture


@dataclass(frozen=True)
class EmojiAttribute(Attribute):
    """One row of the table of ladders."""

    field: str = ""  # what varies: `size`, `tone`, `style` or a key of CHANGES
    toned: bool = False  # whether only names with skin tones have it

    @property
    def read(self) -> Read:
        return READERS[self.field].read

    @property
    def level(self) -> Level:
        return READERS[self.field].level

    def value(self, scale: float) -> float:
        """`at_scale`, held within what can be drawn."""
        low, high = LIMITS[self.field]
        return min(max(self.at_scale(scale), low), high)


ATTRIBUTES = {
    # The five skin tones as they are. 0 is the middle one, and the mean of what the model draws.
    "skin": EmojiAttribute(
        folders=("light", "medium_light", "medium", "medium_dark", "dark"),
        scales=(-2.0, -1.0, 0.0, 1.0, 2.0),
        at_scale=lambda scale: 3.0 + scale,
        unit="skin tone, 1 to 5",
        field="tone",
        toned=True,
    ),
    # The flat drawing and the rendered picture cover each other; the folders between fade one into the other.
    "style": EmojiAttribute(
        folders=("flat", "flatter", "rounder", "rendered"),
        scales=(-1.0, -0.4, 0.4, 1.0),
        at_scale=lambda scale: 0.5 + 0.5 * scale,
        unit="0 flat, 1 rendered",
        field="style",
    ),
    "frost": EmojiAttribute(
        folders=("rime", "frost", "ice", "frozen"),
        scales=(0.5, 1.0, 1.5, 2.0),
        at_scale=lambda scale: 0.4 * scale,
        unit="cover of ice",
        field="frost",
    ),
    "hue": EmojiAttribute(
        folders=("far_back", "back", "on", "far_on"),
        scales=(-2.0, -1.0, 1.0, 2.0),
        at_scale=lambda scale: 30.0 * scale,
        unit="degrees",
        field="hue",
    ),
    # 0 is the mean size of the scenes that the model was trained on.
    "size": EmojiAttribute(
        folders=("smallest", "smaller", "larger", "largest"),
        scales=(-2.0, -1.0, 1.0, 2.0),
        at_scale=lambda scale: sum(SIZE_RANGE) / 2 + 10.0 * scale,
        unit="px long side",
        field="size",
    ),
    "blur": EmojiAttribute(
        folders=("soft", "softer", "blurred", "washed"),
        scales=(0.5, 1.0, 1.5, 2.0),
        at_scale=lambda scale: 1.5 * scale,
        unit="px deviation",
        field="blur",
    ),
}


def training_scenes(pictures: Pictures, name: str, count: int = TRAINING_COUNT) -> Scenes:
    """`count` scenes of names that are not held out, each another; all but the attribute varies from scene to scene.

    They are the same for every archive with the same names. Raises ValueError if there are not so many names.
    """
    return _scenes(pictures, name, pictures.training_names(ATTRIBUTES[name].toned), count, f"train {name}")


def evaluation_scenes(pictures: Pictures, name: str) -> Scenes:
    """Sixteen scenes of held-out names, which come again where there are fewer. A model is asked for their captions."""
    names = pictures.held_out_names(ATTRIBUTES[name].toned)
    return _scenes(pictures, name, names, EVALUATION_COUNT, f"evaluate {name}", again=True)


def at_scale(scenes: Scenes, name: str, scale: float) -> Scenes:
    """The scenes with the attribute as it is at a scale."""
    attribute = ATTRIBUTES[name]
    return scenes.having(attribute.field, torch.full_like(scenes.x, attribute.value(scale)))


def _scenes(pictures: Pictures, name: str, names: list[int], count: int, seed: str, again: bool = False) -> Scenes:
    """Scenes on the pictures' device, every one inside the frame at each scale of the attribute."""
    rng = random.Random(seed)
    if name == "hue":
        names = colourful(pictures, names)
    if again and 0 < len(names) < count:
        names = names * (count // len(names) + 1)
    if count > len(names):
        raise ValueError(f"{name} has {len(names)} names for scenes, not {count}")
    attribute = ATTRIBUTES[name]
    largest = attribute.value(attribute.scales[-1]) if attribute.field == "size" else 0.0
    rows = [_scene(rng, largest) for _ in range(count)]
    x, y, size, tone, style, mirror, right, down = (torch.tensor(column) for column in zip(*rows, strict=True))
    chosen = torch.tensor(rng.sample(names, count))
    scenes = Scenes(
        name=chosen,
        background=torch.arange(count) % len(BACKGROUNDS),
        x=x,
        y=y,
        size=size,
        mirror=mirror & pictures.mirrored.cpu()[chosen],
        slope=torch.stack([right, down], dim=1),
        tone=tone,
        style=style,
        changes={change: torch.zeros(count) for change in CHANGES},
    )
    return scenes.to(pictures.sprites.device)


def _scene(rng: random.Random, largest: float) -> tuple:
    """x, y, size, tone, style, mirror, and the background's slope to the right and down."""
    size = rng.uniform(64.0, 100.0)
    half = max(size, largest) / 2 + MARGIN
    x, y = (rng.uniform(half, IMAGE_SIZE - half) for _ in range(2))
    graded = rng.random() < 0.5
    slopes = (rng.uniform(-SLOPE, SLOPE) * graded for _ in range(2))
    return x, y, size, float(rng.randint(1, 5)), float(rng.random() < 0.5), rng.random() < 0.5, *slopes


def colourful(pictures: Pictures, names: list[int]) -> list[int]:
    """Those names whose colours are strong and of one hue, without which a turn of the hue cannot be seen."""
    device = pictures.sprites.device
    found = []
    for name in names:
        sprites = pictures.sprites[pictures.index[name, :, 2]].float() / 255
        chroma = torch.einsum("cr,srhw->schw", constant(TO_CHROMA, device), sprites[:, :3]).sum((2, 3))
        covered = sprites[:, 3].sum((1, 2))
        if (chroma.norm(dim=1) / covered).min() > 0.12:
            found.append(name)
    return found

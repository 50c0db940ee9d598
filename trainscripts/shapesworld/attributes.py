"""What a slider can be trained on and measured by: which folder shows what, at which scale, and how much is wanted."""

import random
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from worlds.base import Attribute

from shapesworld.world import (
    BACKGROUNDS,
    CENTRE_RANGE,
    COLOURS,
    IMAGE_SIZE,
    MARGIN,
    REACH,
    SHAPES,
    Measures,
    Scenes,
    caption,
    captions,
    measure,
    rgb_at_hue,
)

TRAINING_RADIUS = 20.0  # pixels: size_hard's at scale 1
MODEL_RADIUS = 26.7  # pixels: the mean of the scenes that the model was trained on, and of its pictures
CENTRE = IMAGE_SIZE / 2


@dataclass(frozen=True)
class ShapesAttribute(Attribute):
    measure: str = ""  # the field of world.Measures to read
    colours: tuple[str, ...] = tuple(COLOURS)  # the captions for which it means something
    paint_range: tuple[tuple, ...] | None = None  # for world.measure, as are the next two
    stretched: bool = False
    filled: bool = False


ATTRIBUTES = {
    # 0 is the size that the model itself draws on average.
    "size": ShapesAttribute(
        folders=("small", "base", "large", "huge"),
        scales=(0.67, 1.0, 1.3, 2.0),
        at_scale=lambda scale: MODEL_RADIUS + 8.0 * scale,
        unit="px radius",
        measure="radius",
    ),
    # The model's own size lies between the folders at 1.3 and 2, so the effect must first fall, then rise.
    "size_hard": ShapesAttribute(
        folders=("small", "base", "large", "huge"),
        scales=(0.67, 1.0, 1.3, 2.0),
        at_scale=lambda scale: TRAINING_RADIUS * scale,
        unit="px radius",
        measure="radius",
    ),
    # 0 is the middle, where the model's own pictures lie on average.
    "position": ShapesAttribute(
        folders=("far_left", "left", "right", "far_right"),
        scales=(-2.0, -1.0, 1.0, 2.0),
        at_scale=lambda scale: CENTRE + 10.0 * scale,
        unit="px from the left",
        measure="x",
    ),
    "stretch": ShapesAttribute(
        folders=("wide", "wider", "broad", "broadest"),
        scales=(0.67, 1.0, 1.3, 2.0),
        at_scale=lambda scale: 1.0 + 0.25 * scale,
        unit="width over height",
        measure="stretch",
        stretched=True,
    ),
    "hole": ShapesAttribute(
        folders=("dot", "hole", "gap", "ring"),
        scales=(0.67, 1.0, 1.3, 2.0),
        at_scale=lambda scale: 5.0 * scale,
        unit="px radius",
        measure="hole",
        filled=True,
    ),
    # 0 is the model's own red, 2.5 nearly its yellow; only captions that say "red" are held against it.
    "hue": ShapesAttribute(
        folders=("vermilion", "orange", "amber", "gold"),
        scales=(0.5, 1.0, 1.5, 2.0),
        at_scale=lambda scale: 20.0 * scale,
        unit="degrees of hue",
        measure="hue",
        colours=("red",),
        paint_range=(rgb_at_hue(0), rgb_at_hue(60)),
    ),
    # From the world's blue to its red, for captions that say "purple", which the model draws at -70. A text slider has no
    # folders: its prompts only say "red" above and "blue" below.
    "warmth": ShapesAttribute(
        folders=("blue", "bluish", "reddish", "red"),
        scales=(-1.0, -0.5, 0.5, 1.0),
        at_scale=lambda scale: 63.0 * scale - 63.0,
        unit="degrees of hue",
        measure="hue",
        colours=("purple",),
        paint_range=(COLOURS["blue"], COLOURS["purple"], COLOURS["red"]),
    ),
}

# Chosen, not drawn: every shape twice, every colour once, all four backgrounds, a light and a dark one for each shape,
# and at every size and place of the attributes wholly inside the frame: a slider breaks first what it was never shown.
# shape, colour, background, x, y, radius (for attributes other than size)
TRAINING_SCENES = (
    ("circle", "red", "white", 52.0, 58.0, 20.0),
    ("circle", "yellow", "black", 76.0, 70.0, 28.0),
    ("square", "green", "grey", 50.0, 76.0, 24.0),
    ("square", "purple", "white", 78.0, 54.0, 32.0),
    ("triangle", "blue", "beige", 58.0, 70.0, 26.0),
    ("triangle", "cyan", "black", 70.0, 76.0, 22.0),
)

EVALUATION_COUNT = 16
EVALUATION_SEEDS = tuple(range(1000, 1000 + EVALUATION_COUNT))  # the noise of each evaluation scene's picture


def training_scenes(name: str, scale: float, count: int = len(TRAINING_SCENES)) -> Scenes:
    """The first `count` scenes with the attribute at a scale; all else is the same at every scale.

    After the six chosen ones come drawn ones. Raises ValueError if there are not so many captions.
    """
    scenes = _scenes((TRAINING_SCENES + _drawn_scenes(name, count - len(TRAINING_SCENES)))[:count])
    attribute = ATTRIBUTES[name]
    wanted = torch.full((len(scenes),), attribute.at_scale(scale))
    if attribute.measure != "hue":
        return replace(scenes, **{attribute.measure: wanted})
    named = torch.full_like(scenes.colour, list(COLOURS).index(attribute.colours[0]))
    return replace(scenes, colour=named, paint=torch.tensor(rgb_at_hue(wanted[0].item())).repeat(len(scenes), 1))


def _drawn_scenes(name: str, count: int) -> tuple[tuple, ...]:
    """Scenes with captions of their own, wholly inside the frame at every size of the attribute."""
    if count <= 0:
        return ()
    attribute = ATTRIBUTES[name]
    taken = set(captions(training_scenes(name, 1.0))) | set(captions(evaluation_scenes(name)))
    free = [words for words in product(SHAPES, attribute.colours, BACKGROUNDS) if caption(*words) not in taken]
    if count > len(free):
        raise ValueError(f"{name} has {len(free)} captions left for drawn scenes, not {count}")
    rng = random.Random(name)
    rng.shuffle(free)
    return tuple(_drawn_scene(rng, attribute, words) for words in free[:count])


def _drawn_scene(rng: random.Random, attribute: ShapesAttribute, words: tuple[str, str, str]) -> tuple:
    low, high = CENTRE_RANGE
    reaches = REACH[SHAPES.index(words[0])]
    radius = min(rng.uniform(20.0, 32.0), (low - 2 * MARGIN) / reaches[0])  # so that it fits at either end of the range
    largest = max(attribute.wanted) if attribute.measure == "radius" else radius
    wide = max(attribute.wanted) ** 0.5 if attribute.stretched else 1.0
    aside, up, down = (reach * largest * wide + MARGIN for reach in reaches)
    x = rng.uniform(max(aside, low), min(IMAGE_SIZE - aside, high))
    y = rng.uniform(max(up, low), min(IMAGE_SIZE - down, high))
    return *words, x, y, radius


def measured(name: str, images: Tensor, scenes: Scenes) -> Measures:
    """What the images [N, 3, 128, 128] show, measured as the attribute wants it."""
    attribute = ATTRIBUTES[name]
    return measure(images, scenes, attribute.paint_range, attribute.stretched, attribute.filled)


def evaluation_scenes(name: str) -> Scenes:
    """Sixteen scenes whose captions no training scene has; places and sizes are fillers, since no caption mentions them.

    Each step changes shape, colour and background, and pairs shapes with other colours than the training does. Where
    fewer than sixteen are left (hue: the six other captions that say "red") they come again, with another seed.
    """
    trained = set(captions(training_scenes(name, 1.0)))
    colours = ATTRIBUTES[name].colours
    chosen: list[tuple] = []
    step = 0
    while len(chosen) < EVALUATION_COUNT:
        shape = SHAPES[step % len(SHAPES)]
        colour = colours[(step + step // 3) % len(colours)]
        background = tuple(BACKGROUNDS)[step % len(BACKGROUNDS)]
        if caption(shape, colour, background) not in trained:
            chosen.append((shape, colour, background, CENTRE, CENTRE, TRAINING_RADIUS))
        step += 1
    return _scenes(tuple(chosen))


def _scenes(rows: tuple[tuple, ...]) -> Scenes:
    shape, colour, background, x, y, radius = zip(*rows, strict=True)
    return Scenes(
        shape=torch.tensor([SHAPES.index(name) for name in shape]),
        colour=torch.tensor([list(COLOURS).index(name) for name in colour]),
        background=torch.tensor([list(BACKGROUNDS).index(name) for name in background]),
        x=torch.tensor(x),
        y=torch.tensor(y),
        radius=torch.tensor(radius),
    )

"""Drawn pictures in place of the emoji packages': a hand, a face and an ear in five skin tones, and things without."""

from pathlib import Path

from emojiworld.pictures import SPRITE, write_archive
from PIL import Image, ImageDraw

SKINS = ((248, 216, 196), (226, 184, 148), (198, 145, 103), (150, 98, 66), (84, 54, 42))
SHAPES = {
    "waving hand": "hand",
    "face": "face",
    "ear": "ear",
    "raised hand": "hand",
    "baby": "face",
    "left fist": "hand",
    "old man": "face",
    "listening ear": "ear",
}
THINGS = {
    "red apple": (210, 40, 50),
    "green leaf": (40, 160, 70),
    "blue drop": (50, 90, 220),
    "orange": (240, 140, 30),
    "violet": (130, 60, 190),
    "gold coin": (225, 185, 40),
    "pink shell": (235, 110, 150),
    "teal book": (30, 150, 150),
}


def make_archive(path: Path) -> Path:
    """Each toned shape and each thing, flat and with a shaded side and a highlight."""
    entries, pictures = [], {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        codes = [f"a{number}-{tone}" for tone in range(len(SKINS))]
        entries.append({"name": name, "mirror": "left" not in name, "codes": codes})
        for code, skin in zip(codes, SKINS, strict=True):
            for style in ("flat", "3d"):
                pictures[f"{style}/{code}"] = _body(shape, number, skin, style == "3d")
    for number, (name, colour) in enumerate(THINGS.items()):
        entries.append({"name": name, "mirror": True, "codes": [f"b{number}"]})
        for style in ("flat", "3d"):
            pictures[f"{style}/b{number}"] = _thing(number, colour, style == "3d")
    write_archive(path, entries, pictures)
    return path


def _body(shape: str, number: int, skin: tuple, solid: bool) -> Image.Image:
    image, draw = _sheet()
    s = SPRITE - 1
    if shape == "hand":
        draw.ellipse((0.2 * s, 0.4 * s, 0.85 * s, s), fill=skin)
        for finger in range(4):
            draw.rounded_rectangle(
                ((0.2 + 0.17 * finger) * s, 0.1 * (finger % 2) * s, (0.32 + 0.17 * finger) * s, 0.7 * s), 6, skin
            )
        draw.ellipse((0, 0.5 * s, 0.35 * s, 0.7 * s), fill=skin)
    elif shape == "face":
        draw.ellipse((0.05 * s, 0, 0.95 * s, s), fill=skin)
        draw.pieslice((0.05 * s, 0, 0.95 * s, s), 190, 350, fill=(40 + 20 * number, 30, 30))
        for x in (0.33, 0.62):
            draw.ellipse((x * s, 0.5 * s, (x + 0.07) * s, 0.58 * s), fill=(30, 30, 60))
    else:
        draw.ellipse((0.1 * s, 0, 0.8 * s, 0.8 * s), fill=skin)
        draw.ellipse((0.2 * s, 0.5 * s, 0.6 * s, s), fill=skin)
        draw.arc((0.3 * s, 0.2 * s, 0.65 * s, 0.6 * s), 0, 300, fill=(120, 60, 50), width=3 + number % 3)
    return _shaded(image) if solid else image


def _thing(number: int, colour: tuple, solid: bool) -> Image.Image:
    image, draw = _sheet()
    s = SPRITE - 1
    if number % 3 == 0:
        draw.ellipse((0, 0, s, s), fill=colour)
    elif number % 3 == 1:
        draw.polygon(((0, s), (s, s), (0.5 * s, 0)), fill=colour)
    else:
        draw.rounded_rectangle((0, 0.15 * s, s, 0.85 * s), 14, colour)
    draw.rectangle((0.45 * s, 0.4 * s, 0.55 * s, 0.7 * s), fill=tuple(255 - c for c in colour))
    return _shaded(image) if solid else image


def _sheet() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (SPRITE, SPRITE))
    return image, ImageDraw.Draw(image)


def _shaded(image: Image.Image) -> Image.Image:
    """Darker towards the lower right, with a highlight."""
    shade = Image.radial_gradient("L").resize((2 * SPRITE, 2 * SPRITE)).crop((50, 50, 50 + SPRITE, 50 + SPRITE))
    dark = Image.new("RGBA", image.size, (20, 0, 40, 255))
    lit = Image.composite(dark, image, shade.point(lambda value: value // 2))
    ImageDraw.Draw(lit).ellipse((24, 18, 38, 28), fill=(255, 255, 255))
    lit.putalpha(image.getchannel("A"))
    return lit

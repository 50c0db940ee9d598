"""Line charts of measured values against multipliers, drawn with Pillow."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from worlds.base import World
from worlds.evaluate import Curve

WIDTH, HEIGHT, MARGIN = 480, 360, 56
COLOURS = ("#1f5fbf", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490")
WANTED = "#9ca3af"


class Panel:
    """One chart, with axes that span the range of `points`."""

    def __init__(self, title: str, points: Sequence[tuple[float, float]]):
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(13)
        (self.left, self.right), (self.low, self.high) = (_padded(axis) for axis in zip(*points, strict=True))
        self.draw.text((WIDTH / 2, 12), title, "black", self.font, anchor="ma")
        box = (MARGIN, MARGIN, WIDTH - 16, HEIGHT - MARGIN)
        self.draw.rectangle(box, outline="#d1d5db")
        for i in range(5):
            x = self.left + (self.right - self.left) * i / 4
            y = self.low + (self.high - self.low) * i / 4
            self.draw.text((self._place(x, y)[0], HEIGHT - MARGIN + 6), f"{x:.2g}", "black", self.font, anchor="ma")
            self.draw.text((MARGIN - 6, self._place(x, y)[1]), f"{y:.3g}", "black", self.font, anchor="rm")

    def _place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.left) / (self.right - self.left)
        up = (y - self.low) / (self.high - self.low)
        return MARGIN + across * (WIDTH - 16 - MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str) -> None:
        places = [self._place(x, y) for x, y in zip(xs, ys, strict=True)]
        self.draw.line(places, fill=colour, width=2)
        for x, y in places:
            self.draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)

    def label(self, row: int, text: str, colour: str) -> None:
        self.draw.text((MARGIN + 8, MARGIN + 6 + 16 * row), text, colour, self.font)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or 1.0
    return (low - room if low else 0.0), high + room  # no room below zero


def _points(curve: Curve, column: str) -> list[tuple[float, float]]:
    """(multiplier, value), without those that are not defined."""
    pairs = zip(curve.multipliers, curve.columns[column], strict=True)
    return [(multiplier, value) for multiplier, value in pairs if not math.isnan(value)]


def plot_curves(curves: dict[str, Curve], world: World, path: Path) -> None:
    """Writes the curves {title: curve} of one attribute as a PNG of four panels: mean and target, spread, two of the world's columns."""
    first = next(iter(curves.values()))
    attribute = first.attribute
    own = list(world.columns.items())[:2]
    wanted = [(m, attribute.at_scale(m)) for m in first.multipliers]
    panels = []
    for column, title, ideal in (
        ("mean", f"{first.name}, {attribute.unit}", None),
        ("spread", "spread", 0.0),
        *((name, name, column.ideal) for name, column in own),
    ):
        lines = {name: _points(curve, column) for name, curve in curves.items()}
        extra = wanted if ideal is None else [(first.multipliers[0], ideal)]
        panel = Panel(title, [*extra, *(point for points in lines.values() for point in points)])
        if column == "mean":
            panel.line(*zip(*wanted, strict=True), WANTED)
            panel.label(len(lines), "wanted", WANTED)
        for row, (name, points) in enumerate(lines.items()):
            panel.line(*zip(*points, strict=True), COLOURS[row % len(COLOURS)])
            panel.label(row, name[:44], COLOURS[row % len(COLOURS)])
        panels.append(panel.image)
    canvas = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    for i, panel in enumerate(panels):
        canvas.paste(panel, (i * WIDTH, 0))
    canvas.save(path)

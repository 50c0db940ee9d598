"""Converts sampled pixels to pictures, and arranges pictures in labelled grids."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, FONT_SIZE = 4, 14  # px
LABEL_WIDTH = 22  # characters


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels [3, H, W] in [0, 1] → RGB picture."""
    pixels = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), bytes(pixels.numpy()))


def to_pictures(pictures: Tensor) -> list[list[Image.Image]]:
    """Pictures [rows, columns, 3, H, W] in [0, 1] → RGB pictures [rows][columns], which take a quarter of the memory."""
    return [[to_picture(pixels) for pixels in row] for row in pictures]


def labelled_grid(pictures: Tensor, row_labels: Sequence[str], column_labels: Sequence[str]) -> Image.Image:
    """Pictures [rows, columns, 3, H, W] in [0, 1] → one RGB picture, with column labels above and row labels on the left."""
    rows, columns, _, height, width = pictures.shape
    font = ImageFont.load_default(FONT_SIZE)
    row_labels = [textwrap.fill(label, LABEL_WIDTH, break_on_hyphens=False) for label in row_labels]
    left = max(math.ceil(font.getlength(line)) for label in row_labels for line in label.split("\n")) + 2 * GAP
    top = FONT_SIZE + 2 * GAP
    canvas = Image.new("RGB", (left + columns * (width + GAP), top + rows * (height + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for c, label in enumerate(column_labels):
        draw.text((left + c * (width + GAP) + width / 2, GAP), label, "black", font, anchor="ma")
    for r, label in enumerate(row_labels):
        y = top + r * (height + GAP)
        draw.multiline_text((GAP, y + height / 2), label, "black", font, anchor="lm")
        for c in range(columns):
            canvas.paste(to_picture(pictures[r, c]), (left + c * (width + GAP), y))
    return canvas

"""Sections of the page: the pictures of one prompt, and how much they change with the multiplier."""

from collections.abc import Callable, Sequence

from torch import Tensor

from sliders.report.grids import to_pictures
from sliders.report.page import Chart, Section, Shot, data_uri

Change = Callable[[Tensor, Tensor], float]  # (picture, the same picture at multiplier 0) → how much differs


def section(
    title: str, multipliers: Sequence[float], rows: Sequence[str], pictures: Tensor, changes: dict[str, Change]
) -> Section:
    """pictures: [rows, multipliers, 3, H, W] in [0, 1]. rows: their titles. changes: {title of a chart: what it shows}."""
    base = multipliers.index(0.0)
    charts = [
        Chart(name, multipliers, [[change(picture, row[base]) for picture in row] for row in pictures])
        for name, change in changes.items()
    ]
    return Section(title, multipliers, shots(rows, pictures), charts if len(multipliers) > 1 else ())


def shots(titles: Sequence[str], pictures: Tensor) -> list[Shot]:
    """One per row. pictures: [rows, multipliers, 3, H, W] in [0, 1]."""
    return [Shot(title, list(map(data_uri, row))) for title, row in zip(titles, to_pictures(pictures), strict=True)]

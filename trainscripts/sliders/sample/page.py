"""One HTML file that shows all pictures of a sampling run: nothing beside it, nothing from a network."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

WEB = Path(__file__).parent / "web"
LOSSLESS_UP_TO = 256 * 256  # px; larger pictures would make a page of hundreds of megabytes
WEBP_QUALITY = 90
CHART = (280, 150)  # width and height in SVG's units
LEFT, RIGHT, TOP, BOTTOM = 40, 270, 10, 126


@dataclass(frozen=True)
class Shot:
    """One seed: a picture at each multiplier, as data URIs."""

    seed: int
    images: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """One measure over the multipliers, placed in an SVG of `width` × `height`."""

    title: str
    multipliers: Sequence[float]
    per_seed: Sequence[Sequence[float]]
    width, height = CHART
    left, right, top, bottom = LEFT, RIGHT, TOP, BOTTOM

    @property
    def values(self) -> list[float]:
        """Mean over the seeds at each multiplier."""
        return [sum(column) / len(column) for column in zip(*self.per_seed, strict=True)]

    @property
    def xs(self) -> list[float]:
        low, high = min(self.multipliers), max(self.multipliers)
        return [round(LEFT + (RIGHT - LEFT) * (m - low) / ((high - low) or 1), 2) for m in self.multipliers]

    def _range(self) -> tuple[float, float]:
        everything = [value for line in self.per_seed for value in line]
        low, high = min(0.0, *everything), max(0.0, *everything)
        return low, high if high > low else low + 1e-3

    def _y(self, value: float) -> float:
        low, high = self._range()
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 2)

    def _line(self, values: Sequence[float]) -> str:
        return " ".join(f"{x},{self._y(value)}" for x, value in zip(self.xs, values, strict=True))

    @property
    def mean(self) -> str:
        return self._line(self.values)

    @property
    def thin(self) -> list[str]:
        return [self._line(values) for values in self.per_seed] if len(self.per_seed) > 1 else []

    @property
    def dots(self) -> list[tuple[float, float]]:
        return [(x, self._y(value)) for x, value in zip(self.xs, self.values, strict=True)]

    @property
    def y_ticks(self) -> list[dict]:
        low, high = self._range()
        return [{"at": self._y(v), "label": f"{v:.2g}"} for v in (low, (low + high) / 2, high)]

    @property
    def x_ticks(self) -> list[dict]:
        """The multipliers, less those whose labels would touch."""
        ticks: list[dict] = []
        for x, m in zip(self.xs, self.multipliers, strict=True):
            if not ticks or x - ticks[-1]["at"] > 22:
                ticks.append({"at": x, "label": multiplier_label(m)})
        return ticks

    @property
    def spoken(self) -> str:
        pairs = zip(self.multipliers, self.values, strict=True)
        return ", ".join(f"{value:.3f} at {multiplier_label(m)}" for m, value in pairs)


@dataclass(frozen=True)
class Section:
    """One prompt."""

    title: str
    multipliers: Sequence[float]
    shots: Sequence[Shot]
    charts: Sequence[Chart] = ()

    @property
    def base(self) -> int:
        """Index of multiplier 0."""
        return list(self.multipliers).index(0.0)


@dataclass(frozen=True)
class Page:
    title: str
    width: int  # of the pictures, px
    height: int
    groups: Sequence[Section]
    facts: dict[str, str] = field(default_factory=dict)  # how the pictures were made
    footer: str = ""

    @property
    def multipliers(self) -> list[float]:
        return sorted({m for group in self.groups for m in group.multipliers})


def multiplier_label(multiplier: float) -> str:
    return f"{multiplier:.6g}"


def data_uri(picture: Image.Image) -> str:
    """The picture as WebP, without loss where it is small."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=picture.width * picture.height <= LOSSLESS_UP_TO, quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def render(page: Page) -> str:
    """The whole page. What users wrote, such as prompts, is escaped."""
    environment = Environment(loader=FileSystemLoader(WEB, encoding="utf-8"), autoescape=True, trim_blocks=True)
    style, script = (Markup((WEB / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(page=page, css=style, js=script, label=multiplier_label)

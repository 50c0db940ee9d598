"""One self-contained HTML file that shows all pictures of a sampling run. It loads nothing, neither files nor URLs."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from sliders.system.files import atomic_write

WEB = Path(__file__).parent / "web"
LOSSLESS_UP_TO = 256 * 256  # px; larger pictures would make the page hundreds of megabytes large
WEBP_QUALITY = 90
CHARACTER = 6.0  # SVG units, at the charts' font size of 10


@dataclass(frozen=True)
class Shot:
    """The pictures of one sweep, one per multiplier, as data URIs."""

    title: str  # such as `seed 1`
    images: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """One measure plotted against the multiplier. All coordinates are in SVG units."""

    title: str
    multipliers: Sequence[float]
    per_seed: Sequence[Sequence[float]]  # [sweeps][multipliers]
    wanted: Sequence[tuple[float, float]] = ()  # (multiplier, value): where the mean should go through
    width, height = 300, 150
    left, right, top, bottom = 56, 284, 10, 126  # the area inside the axes; a label of nine characters fits beside it

    @property
    def values(self) -> list[float]:
        """Mean over the sweeps, per multiplier."""
        return [sum(column) / len(column) for column in zip(*self.per_seed, strict=True)]

    @property
    def xs(self) -> list[float]:
        return [self._x(m) for m in self.multipliers]

    def _x(self, multiplier: float) -> float:
        low, high = min(self.multipliers), max(self.multipliers)
        return round(self.left + (self.right - self.left) * (multiplier - low) / ((high - low) or 1), 2)

    def _range(self) -> tuple[float, float]:
        everything = [value for line in self.per_seed for value in line] + [value for _, value in self.wanted]
        low, high = min(0.0, *everything), max(0.0, *everything)
        return low, high if high > low else low + 1e-3

    def _y(self, value: float) -> float:
        low, high = self._range()
        return round(self.bottom - (self.bottom - self.top) * (value - low) / (high - low), 2)

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
    def rings(self) -> list[tuple[float, float]]:
        return [(self._x(multiplier), self._y(value)) for multiplier, value in self.wanted]

    @property
    def y_ticks(self) -> list[dict]:
        low, high = self._range()
        return [{"at": self._y(v), "label": f"{v:.2g}"} for v in (low, (low + high) / 2, high)]

    @property
    def x_ticks(self) -> list[dict]:
        """The multipliers, without those whose labels would overlap. At the ends they are moved to be seen whole."""
        ticks: list[dict] = []
        taken = 0.0
        for x, m in zip(self.xs, self.multipliers, strict=True):
            label = multiplier_label(m)
            half = len(label) * CHARACTER / 2
            at = round(min(max(x, half), self.width - half), 2)
            if at - half >= taken:
                ticks.append({"at": at, "label": label})
                taken = at + half + CHARACTER
        return ticks

    @property
    def spoken(self) -> str:
        """The chart as text for screen readers."""
        pairs = zip(self.multipliers, self.values, strict=True)
        return ", ".join(f"{value:.3f} at {multiplier_label(m)}" for m, value in pairs)


@dataclass(frozen=True)
class Section:
    """One prompt's pictures and charts."""

    title: str
    multipliers: Sequence[float]
    shots: Sequence[Shot]
    charts: Sequence[Chart] = ()

    @property
    def base(self) -> int:
        """Index of multiplier 0."""
        return self.multipliers.index(0.0)


@dataclass(frozen=True)
class Measured:
    """One slider's report card as the page shows it."""

    title: str
    chart: Chart
    rows: Sequence[tuple[str, str, str]]  # (name, value, explanation)
    lines: Sequence[tuple[str, str]]  # (what it is for, text to paste into a web UI)


@dataclass(frozen=True)
class Page:
    """The content of the page."""

    title: str
    width: int  # of the pictures, px
    height: int
    groups: Sequence[Section]
    facts: dict[str, str] = field(default_factory=dict)  # how the pictures were made
    footer: str = ""  # added to the explanation of the charts
    cards: Sequence[Measured] = ()

    @property
    def multipliers(self) -> list[float]:
        return sorted({m for group in self.groups for m in group.multipliers})


def multiplier_label(multiplier: float) -> str:
    """Six digits. Multipliers with the same label count as one: their pictures would have one file name."""
    return f"{multiplier + 0.0:.6g}"  # without the sign of −0


def data_uri(picture: Image.Image) -> str:
    """The picture as a WebP data URI, lossless if it is small."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=picture.width * picture.height <= LOSSLESS_UP_TO, quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, page: Page) -> None:
    """Raises OSError; `path` is then as before."""
    with atomic_write(path) as temporary:
        temporary.write_text(render(page), encoding="utf-8")


def render(page: Page) -> str:
    """The page as HTML. User text such as prompts is escaped."""
    return rendered("page", {"label": multiplier_label}, page=page)


def rendered(name: str, filters: dict[str, Callable[[Any], str]], **content: object) -> str:
    """The template `name` with the style that pages share and its own script. All text in `content` is escaped."""
    environment = Environment(loader=FileSystemLoader(WEB, encoding="utf-8"), autoescape=True, trim_blocks=True)
    environment.filters.update(filters)
    style, script = (Markup((WEB / file).read_text(encoding="utf-8")) for file in ("page.css", f"{name}.js"))
    return environment.get_template(f"{name}.html").render(css=style, js=script, **content)

"""The page of a ladder, which lies beside its folders: rows to look through, to tick the bad ones and to take their names along."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from sliders.report.page import rendered
from sliders.system.files import atomic_write


@dataclass(frozen=True)
class LadderRow:
    name: str  # of the row's files in all folders
    caption: str
    files: Sequence[str]  # one in each folder, relative to the page


@dataclass(frozen=True)
class LadderPage:
    title: str
    width: int  # of the pictures, px
    height: int
    columns: Sequence[str]  # what each folder shows
    rows: Sequence[LadderRow]
    facts: dict[str, str] = field(default_factory=dict)  # how the pictures were made


def write_ladder_page(path: Path, page: LadderPage) -> None:
    """Raises OSError; `path` is then as before."""
    with atomic_write(path) as temporary:
        temporary.write_text(rendered("ladder", {"url": quote}, page=page), encoding="utf-8")

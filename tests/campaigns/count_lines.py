"""Counts files, functions and lines of code in each room of the package.

    python tests/campaigns/count_lines.py
    python tests/campaigns/count_lines.py --root ../before .

A line of code is one that is neither blank, nor a comment, nor part of a docstring. All files are first formatted by this
checkout's ruff and settings, so that how lines are broken makes no difference. Functions include methods and inner ones.
With two checkouts, each cell says before, after and the change in percent.
"""

import argparse
import ast
import io
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections import defaultdict
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = Path("trainscripts", "sliders")
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Count:
    files: int = 0
    functions: int = 0
    lines: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def docstrings(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(start, end) of each, as (line, column), the line counted from 1. Columns count bytes, as those of `ast` do."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            found.append(((text.lineno, text.col_offset), (text.end_lineno, text.end_col_offset)))
    return found


def count_source(text: str) -> Count:
    """Of one file."""
    tree = ast.parse(text)
    skipped, lines = docstrings(tree), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        inside = token.type == tokenize.STRING and any(start <= token.start < end for start, end in skipped)
        if token.type not in NO_CODE and not inside:
            lines |= set(range(token.start[0], token.end[0] + 1))
    written = {number for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))
    return Count(1, functions, len(lines & written))


def count_rooms(root: Path) -> dict[str, Count]:
    """{room: count} of the checkout `root`; files in no room are under `.`. Raises CalledProcessError if ruff fails."""
    found: dict[str, Count] = defaultdict(Count)
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary, "package")
        shutil.copytree(root / PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            "format",
            "--quiet",
            "--no-cache",
            "--config",
            str(ROOT / "pyproject.toml"),
        ]
        subprocess.run([*ruff, str(package)], check=True)
        for path in package.rglob("*.py"):
            room = path.relative_to(package).parts[0] if path.parent != package else "."
            found[room] += count_source(path.read_text(encoding="utf-8"))
    return dict(found)


def table(counts: list[dict[str, Count]]) -> str:
    """Of one checkout, or of two: before and after."""
    rooms = sorted(set().union(*counts))
    counts = [{**count, "total": sum(count.values(), Count())} for count in counts]
    names = [f.name for f in fields(Count)]
    rows = [["room", *names]]
    for room in (*rooms, "total"):
        of_room = [astuple(count.get(room, Count())) for count in counts]
        rows.append([room, *(cell(*numbers) for numbers in zip(*of_room, strict=True))])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ([row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in rows)
    return "".join("  ".join(line) + "\n" for line in lines)


def cell(before: int, after: int | None = None) -> str:
    if after is None:
        return str(before)
    change = "=" if before == after else f"{after / before - 1:+.1%}" if before else "new"
    return f"{before} / {after} / {change}"


def main(roots: list[Path]) -> str:
    """The table of one checkout or two."""
    return table([count_rooms(root) for root in roots])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, nargs="+", default=[ROOT], help="a checkout, or two: before and after")
    arguments = parser.parse_args()
    if len(arguments.root) > 2:
        parser.error("--root takes one checkout or two")
    print(main(arguments.root), end="")

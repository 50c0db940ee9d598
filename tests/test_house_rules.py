"""The shape of the code: imports point one way, and READMEs name what exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAINSCRIPTS = ROOT / "trainscripts"
PACKAGE = TRAINSCRIPTS / "sliders"
FILES = sorted(p for p in TRAINSCRIPTS.rglob("*.py"))

# Data passes through the rooms in this order; a room imports only from itself and from those before it.
ROOMS = (
    "system",
    "config",
    "compute",
    "models",
    "adaptors",
    "fast",
    "data",
    "report",
    "formats",
    "sample",
    "train",
    "check",
    "commands",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sliders":
            inner = node.module.removeprefix("sliders").lstrip(".")
            names |= {inner} if inner else {alias.name for alias in node.names if alias.name != "__version__"}
    return names


@pytest.mark.parametrize("path", [p for p in FILES if PACKAGE in p.parents], ids=module_name)
def test_a_room_imports_only_from_rooms_before_it(path):
    room = module_name(path).split(".")[0]
    reached = {name.split(".")[0] for name in imported(path)}
    if room == "__init__":
        assert not reached
        return
    assert room in ROOMS, f"{room} needs a place in ROOMS"
    allowed = ROOMS[: ROOMS.index(room) + 1]
    assert reached <= set(allowed), f"{path} imports {reached - set(allowed)}"


def test_files_of_a_room_do_not_import_each_other_in_a_circle():
    waiting = {module_name(p): imported(p) for p in FILES if PACKAGE in p.parents}
    waiting = {name: {other for other in others if other in waiting} for name, others in waiting.items()}
    while free := [name for name, others in waiting.items() if not others]:
        waiting = {name: others - set(free) for name, others in waiting.items() if name not in free}
    assert not waiting


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_sliders_file_knows_a_world(path):
    if PACKAGE in path.parents:
        assert not re.search("shapesworld|emojiworld|from worlds", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(TRAINSCRIPTS.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_a_readme_names_only_scripts_that_exist(path):
    """Scripts of other folders are named without their folder. NAME stands for one to be written."""
    scripts = [f"/{p.relative_to(ROOT)}" for p in (*FILES, *(ROOT / "tests").rglob("*.py"))]
    named = set(re.findall(r"`([\w./-]+\.py)\b", path.read_text(encoding="utf-8")))
    missing = {name for name in named if not any(script.endswith(f"/{name}") for script in scripts)}
    assert {name for name in missing if "NAME" not in name} == set()


def test_the_tour_names_every_file_of_the_package_and_no_other():
    tour = (PACKAGE / "README.md").read_text(encoding="utf-8")
    named, room = {}, None
    for line in tour.splitlines():
        if header := re.fullmatch(r"\| (\w+) \| \|", line):
            room = header[1]
        elif room and line.startswith("| `"):
            named.setdefault(room, set()).update(re.findall(r"`([\w/]+)`", line.split("|")[1]))
        elif not line.startswith("|"):
            room = None
    there = {
        folder.name: {f"{p.name}/" if p.is_dir() else p.stem for p in folder.iterdir() if not p.name.startswith("__")}
        for folder in PACKAGE.iterdir()
        if folder.is_dir() and not folder.name.startswith("__")
    }
    assert named == there
    paths = set(re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w/]+\.py)`", tour))
    assert {path for path in paths if not (PACKAGE / path).exists()} == {"adaptors/NAME.py"}

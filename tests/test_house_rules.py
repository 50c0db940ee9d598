"""The shape of the code: imports point one way, functions and files stay short, nothing heavy before --help."""

import ast
from pathlib import Path

import pytest

TRAINSCRIPTS = Path(__file__).parent.parent / "trainscripts"
PACKAGE = TRAINSCRIPTS / "sliders"
FILES = sorted(p for p in TRAINSCRIPTS.rglob("*.py"))

# flags + YAML → settings → model + data set → network → batch → loss → step → checkpoint: a file imports only from
# lines above its own. Files on one line do not know each other.
FLOORS = """
errors fields interrupts installation
files schema command
flags lock samplers images attention kernels.group_norm kernels.layer_norm kernels.geglu quantization device
kernels templates change grids page judges
infotext adaptors.base adaptors.low_rank models.layers models.sdxl_keys models.narrow models.schedule models.sources
adaptors.lora fusion settings models.sdxl optim dataset journal
adaptors compilation
models.sdxl_unet network latents sample_settings
batch checkpoint sampling models.random_sdxl flat states watch
preview cards convert gradients learner resources
denoiser outputs
losses
trainer
plan sample_plan
runs sample_run
"""
FLOOR = {name: floor for floor, line in enumerate(FLOORS.strip().splitlines()) for name in line.split()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sliders":
            inner = node.module.removeprefix("sliders").lstrip(".")
            names |= {inner} if inner else {alias.name for alias in node.names if alias.name != "__version__"}
    return names


@pytest.mark.parametrize("path", [p for p in FILES if PACKAGE in p.parents], ids=lambda p: p.stem)
def test_a_file_imports_only_from_lower_floors(path):
    name = module_name(path)
    if name in ("__init__", "", "models"):
        assert not imported(path)
        return
    assert name in FLOOR, f"{name} needs a place in FLOORS"
    assert all(FLOOR[other] < FLOOR[name] for other in imported(path)), f"{name} imports {imported(path)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} is too long"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_sliders_file_knows_the_shapes_world(path):
    if PACKAGE in path.parents:
        assert "shapesworld" not in path.read_text(encoding="utf-8")

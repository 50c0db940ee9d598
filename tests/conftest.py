"""What the tests share: a generated data set, an experiment on the tiny model, and the command line run in process."""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # or each of the dozen interpreters that tests start would compile all libraries again, which is half of its start
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(
        Path(__file__).parents[1] / ".pytest_cache" / "__pycache__"
    )
    sys.dont_write_bytecode = False
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test goes to the network; before huggingface_hub is imported
os.environ["SLIDERS_CACHE"] = ""  # encoded prompts of one test are not another's
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or each worker's threads would wait for the others'; before torch

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on the CPU

import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image
from scripts import run_script

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "trainscripts" / "imagesliders"
TEXT_SCRIPTS = ROOT / "trainscripts" / "textsliders"
SCRIPT_FOLDERS = (SCRIPTS, TEXT_SCRIPTS, ROOT / "trainscripts" / "benchmarks")
FOUR_FOLDERS = ("verylow", "low", "high", "veryhigh")
EXPERIMENT = {
    "pretrained_model": {"name_or_path": "tiny"},
    "network": {"type": "c3lier", "rank": 4, "alpha": 2.0, "training_method": "noxattn"},
    "train": {"precision": "float32", "iterations": 3, "lr": 1e-3, "max_denoising_steps": 50},
    "save": {"name": "probe", "per_steps": 100},
}
PROMPT_SET = {"target": "", "resolution": 64}


def script_path(file_name: str) -> Path:
    """Of a command or benchmark."""
    return next(p for folder in SCRIPT_FOLDERS if (p := folder / f"{file_name}.py").exists())


def script_main(file_name: str) -> Callable[[list[str]], int]:
    """`main(argv)` runs the command's script in this process and returns its exit status."""
    return partial(run_script, script_path(file_name))


def load_script(file_name: str):
    """A command or benchmark as a module; some names hold dashes, so `import` cannot reach them.

    Its folder comes first in the search path, as when Python runs the script: benchmarks import their neighbours.
    """
    path = script_path(file_name)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(file_name.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def train_main():
    """`train_main(argv)` runs the trainer's command line in this process and returns its exit status."""
    return script_main("train_lora-scale-xl")


@pytest.fixture(scope="session")
def sample_main():
    """`sample_main(argv)` runs the sample command in this process and returns its exit status."""
    return script_main("sample_slider-xl")


def disc(size: tuple[int, int], brightness: float, radius: float = 0.6) -> Image.Image:
    """A disc of `brightness` (0 to 1) on a colour gradient; `radius` as a share of half the shorter side."""
    width, height = size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    short = min(size)
    inside = (x * width / short) ** 2 + (y * height / short) ** 2 < radius**2
    backdrop = np.stack([x + 1, y + 1, 1 - x], axis=-1) / 4
    pixels = np.where(inside[..., None], brightness, backdrop)
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


def make_scale_folders(root: Path, folders=FOUR_FOLDERS, names=("one", "two"), size=(64, 64), suffix=".png") -> Path:
    """`root/{folder}/{name}{suffix}`: a disc brighter from folder to folder and larger from name to name. Returns `root`."""
    for f, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for n, name in enumerate(names):
            picture = disc(size, brightness=(f + 1) / len(folders), radius=0.4 + 0.4 * n / max(1, len(names) - 1))
            picture.save(root / folder / f"{name}{suffix}")
    return root


def write_experiment(tmp_path: Path, flags=(), prompts=None, data: Path | None = None, **overrides) -> list[str]:
    """Write a config and a prompts file for the tiny model under `tmp_path` and return the command line to train it.

    `overrides` are sections of the config, laid over `EXPERIMENT` key by key (`train={"iterations": 20}`); a section or
    key given as None is left out. `prompts` replaces the list of prompt sets. `flags` are put at the end. Unless `data`
    names a data set, `tmp_path/"data"` is taken, and made with four folders of two images if it is not there.
    """
    config = {"prompts_file": str(tmp_path / "prompts.yaml"), **{k: dict(v) for k, v in EXPERIMENT.items()}}
    config["save"]["path"] = str(tmp_path / "models")
    for section, value in overrides.items():
        merged = {**config.get(section, {}), **value} if isinstance(value, dict) else value
        config[section] = {k: v for k, v in merged.items() if v is not None} if isinstance(merged, dict) else merged
    config = {section: value for section, value in config.items() if value is not None}
    write_yaml(tmp_path / "config.yaml", config)
    write_yaml(tmp_path / "prompts.yaml", [PROMPT_SET] if prompts is None else prompts)
    if data is None:
        data = tmp_path / "data"
        if not data.exists():
            make_scale_folders(data)
    return [
        "--config_file", str(tmp_path / "config.yaml"), "--folder_main", str(data), "--device", "cpu", *flags,
    ]  # fmt: skip


def write_yaml(path: Path, content) -> Path:
    """`content` as YAML; a string is written as it is, mistakes and all."""
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def narrow_folders(tmp_path_factory):
    """{family: folder of a narrow model}, written once."""
    from narrow_files import FAMILIES, pipeline

    root = tmp_path_factory.mktemp("narrow")
    for family in FAMILIES:
        pipeline(family).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture(scope="session")
def emoji_archive(tmp_path_factory):
    """Drawn pictures in place of the emoji packages'."""
    from emoji_stand_ins import make_archive

    return make_archive(tmp_path_factory.mktemp("stand-ins") / "pictures.zip")


@pytest.fixture(scope="session")
def stand_ins(emoji_archive):
    """The emoji world of the drawn pictures."""
    from emojiworld.evaluate import EmojiWorld

    return EmojiWorld(emoji_archive)


@pytest.fixture(scope="session")
def emoji():
    """The emoji world of the packages' pictures; skips where get_pictures.py has not been run."""
    from emojiworld.evaluate import EMOJI
    from emojiworld.pictures import PICTURES

    if not PICTURES.exists():
        pytest.skip("get_pictures.py has not been run")
    return EMOJI

"""Runs that several tests make: a trainer in this process, and command lines of runs that can be resumed."""

from pathlib import Path

from conftest import make_scale_folders, write_experiment
from sliders.config.settings import load_settings
from sliders.data.dataset import ScaleFolders
from sliders.data.timesteps import allowed_timesteps
from sliders.models import find_family
from sliders.train.plan import Plan, make_plan
from sliders.train.trainer import Trainer

SCALES = (0.67, 1.0, 1.3, 2.0)

FOLDERS = ("small", "base", "large", "huge")

PROMPTS = [
    {"target": "a disc", "positive": "a bright disc", "neutral": "a disc", "unconditional": "", "resolution": 64},
    {"target": "a circle", "positive": "a white circle", "neutral": "", "resolution": 64, "batch_size": 3},
]

RUN = "probe_alpha2.0_rank4_noxattn"

VARIED = [{"target": "", "resolution": 128, "dynamic_resolution": True, "batch_size": 2}]


def make_trainer(
    tmp_path, flags=(), prompts=None, folders=FOLDERS, names=("a", "b", "c"), family="sdxl", size=(64, 64), **overrides
):
    data = make_scale_folders(tmp_path / "data", folders=FOLDERS, names=names, size=size)
    scales = ", ".join(map(str, SCALES))
    flags = [*flags, "--folders", ", ".join(folders), "--scales", scales]
    argv = write_experiment(tmp_path, flags=flags, prompts=prompts or PROMPTS, data=data, **overrides)
    (settings,), _ = load_settings(argv, family)
    return Trainer(make_plan(settings))


def unchecked_plan(settings, device="cpu"):
    """A plan that skips the checks of device and output, for what a test puts in their place."""
    family = find_family(settings.family, settings.pretrained_model)
    data = ScaleFolders.find(settings.data, family.facts.size_multiple)
    timesteps = allowed_timesteps(settings.train)
    return Plan(settings, family, device, data, (), 0, checkpoint=None, damaged=(), timesteps=timesteps)


def experiment(folder, iterations=7, per_steps=2, flags=(), **overrides):
    """Command line of a run in `folder`, all of them on one data set beside it."""
    folder.mkdir(exist_ok=True)
    overrides["train"] = {"iterations": iterations, **overrides.get("train", {})}
    overrides["save"] = {"per_steps": per_steps, **overrides.get("save", {})}
    data = folder.parent / "data"
    if not data.exists():
        make_scale_folders(data)
    return write_experiment(folder, flags=flags, data=data, **overrides)


def settings_of(argv):
    (settings,), _ = load_settings(argv)
    return settings


def everything_in(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


class Bomb:
    """Unpickled by a loader that runs code, it makes the file `ran` in the working directory."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)

"""Runs that several tests make: a trainer in this process, and command lines of runs that can be resumed."""

from pathlib import Path

from conftest import make_scale_folders, write_experiment, write_yaml
from sliders.config.settings import load_settings, load_text_settings
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
# all sections but pretrained_model of the configs that the original trainers ship
UPSTREAM_BLOCK = """
network:
  type: "c3lier"
  rank: 4
  alpha: 1.0
  training_method: "noxattn"
train:
  precision: "bfloat16"
  noise_scheduler: "ddim"
  iterations: 1000
  lr: 0.0002
  optimizer: "AdamW"
  lr_scheduler: "constant"
  max_denoising_steps: 50
save:
  name: "temp"
  path: "./models"
  per_steps: 500
  precision: "bfloat16"
logging:
  use_wandb: false
  verbose: false
other:
  use_xformers: true
"""


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


TEXT_SETS = [
    {"target": "a shape", "positive": "a red shape", "unconditional": "a blue shape", "neutral": "a plain shape",
     "guidance_scale": 1.5, "resolution": 64, "batch_size": 2},
    {"target": "a disc", "positive": "a red disc", "unconditional": "a blue disc", "neutral": "a disc",
     "action": "erase", "guidance_scale": 3, "resolution": 64},
]  # fmt: skip
TEXT_STEPS = 6


def write_text_experiment(root, flags=(), prompts=None, **overrides):
    root.mkdir(exist_ok=True)
    config = {
        "prompts_file": str(root / "prompts.yaml"),
        "pretrained_model": {"name_or_path": "tiny"},
        "network": {"type": "c3lier", "rank": 4, "alpha": 2.0, "training_method": "noxattn"},
        "train": {
            "precision": "float32",
            "iterations": 3,
            "lr": 1e-3,
            "max_denoising_steps": TEXT_STEPS,
            "timestep_bias": 0,
        },
        "save": {"name": "probe", "path": str(root / "models"), "per_steps": 100},
    }
    for section, values in overrides.items():
        config[section] = {**config.get(section, {}), **values}
    write_yaml(root / "config.yaml", config)
    write_yaml(root / "prompts.yaml", TEXT_SETS if prompts is None else prompts)
    return ["--config_file", str(root / "config.yaml"), "--device", "cpu", *flags]


def text_settings_of(argv):
    (settings,), _ = load_text_settings(argv)
    return settings


def make_text_trainer(root, flags=(), prompts=None, **overrides):
    return Trainer(make_plan(text_settings_of(write_text_experiment(root, flags, prompts, **overrides))))


class Bomb:
    """Unpickled by a loader that runs code, it makes the file `ran` in the working directory."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def sample_argv(path, out, *flags):
    """The sample command's, for quick pictures of a slider of the tiny model."""
    argv = ["--model", "tiny", "--slider", str(path), "--prompt", "a disc", "--device", "cpu", "--out", str(out)]
    return [*argv, "--width", "64", "--height", "64", "--seeds", "1", "--steps", "3", *flags]

"""Narrow models of each family as folders and as state dicts in the original layout, for tests of where models come from."""

import json
import shutil
from functools import cache
from pathlib import Path

import torch
from conftest import load_script
from safetensors.torch import save_file
from sliders.config.schema import PretrainedModel
from sliders.models import find_family
from sliders.models.sd.narrow import build_narrow_sd
from sliders.models.sdxl.narrow import NarrowSDXL, build_narrow_sdxl

single_file = load_script("single_file")  # stands beside the benchmarks
original_state, save_single_file = single_file.original_state, single_file.save_single_file
FAMILIES = ("sdxl", "sd1", "sd2")
ENCODERS = ("text_encoder", "text_encoder_2")


@cache
def pipeline(family):
    """SDXL's text encoders differ in width, like the real ones'."""
    if family == "sdxl":
        return build_narrow_sdxl(NarrowSDXL(text_hidden_sizes=(32, 64), text_projection_dim=48), seed=4)
    return build_narrow_sd(v2=family == "sd2", seed=4)


@cache
def state_of(family):
    """Not to be changed."""
    return original_state(pipeline(family))


def save(path, state, metadata=None):
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path, metadata=metadata)
    return path


def settings(family, path, config=None, **others):
    config = None if config is None else str(config)
    return PretrainedModel(name_or_path=str(path), config=config, v2=family == "sd2", **others)


def check(family, path, config=None, **others):
    chosen = settings(family, path, config, **others)
    find_family(family.rstrip("12"), chosen).check_source(chosen)


def load(family, path, config=None, dtype=torch.float32, **others):
    chosen = settings(family, path, config, **others)
    return find_family(family.rstrip("12"), chosen).load(chosen, dtype)


def worst_difference(model, family):
    """The largest relative error of a weight, over all parts."""
    worst = 0.0
    for part in ("unet", "vae", *ENCODERS):
        if (wanted := getattr(pipeline(family), part, None)) is None:
            continue
        found = getattr(model.pipe, part).state_dict()
        assert found.keys() == wanted.state_dict().keys()
        for name, weight in wanted.state_dict().items():
            difference = (found[name].float() - weight).norm() / weight.norm().clamp(min=1e-6)
            worst = max(worst, difference.item())
    return worst


def change_json(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copied(folder, path):
    return shutil.copytree(folder, path)

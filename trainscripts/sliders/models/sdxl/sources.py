"""Checks where a model comes from before its weights are loaded."""

import json
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sliders.config.schema import PretrainedModel
from sliders.system.errors import InputError, cannot_be_read

TINY = "tiny"
SINGLE_FILES = (".safetensors", ".ckpt")
VAE_PREFIX = "first_stage_model."
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # names in .safetensors files
HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


def check_source(settings: PretrainedModel) -> tuple[bool, bool] | None:
    """Returns (v-prediction, zero terminal SNR) as a single file's keys announce them, None for other sources.

    Raises InputError if the path does not exist, cannot be read or is not an SDXL model's. Hub ids are not looked up.
    """
    name, path = settings.name_or_path, Path(settings.name_or_path)
    if name == TINY:
        return None
    if path.is_dir():
        _check_folder(path)
        return None
    if path.suffix.lower() in SINGLE_FILES:
        if not path.is_file():
            raise InputError(f"pretrained_model.name_or_path: {path} does not exist: check the path.")
        if settings.config is not None and not (Path(settings.config) / "model_index.json").is_file():
            raise InputError(
                f"pretrained_model.config: {settings.config} contains no model_index.json: use a diffusers folder."
            )
        return _check_single_file(path)
    if not re.fullmatch(HUB_ID, name):
        raise InputError(
            f"pretrained_model.name_or_path: {name} is neither an existing folder, .safetensors or .ckpt file, nor a hub id like "
            "stabilityai/stable-diffusion-xl-base-1.0: check it."
        )
    return None


def _check_folder(path: Path) -> None:
    try:
        name = json.loads((path / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"pretrained_model.name_or_path: {path} contains no readable model_index.json: use a diffusers folder."
        ) from error
    if not str(name).startswith("StableDiffusionXL"):
        raise InputError(
            f"pretrained_model.name_or_path: {path} is a {name}, but only SDXL is supported: choose an SDXL model."
        )


def _check_single_file(path: Path) -> tuple[bool, bool]:
    keys = _keys_of_safetensors(path) if path.suffix.lower() == ".safetensors" else _keys_of_ckpt(path)
    encoders = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.")
    if not all(any(key.startswith(prefix) for key in keys) for prefix in encoders):
        raise InputError(
            f"pretrained_model.name_or_path: {path} is not an SDXL checkpoint (SD 1, a LoRA, a UNet alone?): choose an SDXL one."
        )
    return "v_pred" in keys, "ztsnr" in keys


def stored_dtype(path: Path) -> torch.dtype | None:
    """The dtype of all weights but the VAE's in a .safetensors file. None if they have several, and for a .ckpt."""
    if path.suffix.lower() != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys() if not key.startswith(VAE_PREFIX)}  # noqa: SIM118
    kinds -= {"I64"}  # position ids
    return STORED.get(kinds.pop()) if len(kinds) == 1 else None


def _keys_of_safetensors(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except OSError as error:
        raise InputError(f"pretrained_model.name_or_path: {path} {cannot_be_read(error)}.") from error
    except SafetensorError as error:
        raise InputError(
            f"pretrained_model.name_or_path: {path} is not a complete .safetensors file: download it again."
        ) from error


def _keys_of_ckpt(path: Path) -> set[str]:
    """Reads the keys with torch's weights-only unpickler, which runs no code. Mapping avoids reading the weights."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return set(state.get("state_dict", state))
    except Exception as error:  # unpickling untrusted bytes can raise nearly anything
        raise InputError(
            f"pretrained_model.name_or_path: {path} is damaged, or contains code, which is never run: use a .safetensors file."
        ) from error

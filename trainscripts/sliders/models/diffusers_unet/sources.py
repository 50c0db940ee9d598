"""Checks where a model comes from, and of which kind it is, before its weights are loaded."""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sliders.config.schema import PretrainedModel
from sliders.system.errors import InputError, cannot_be_read

TINY = "tiny"
SINGLE_FILES = (".safetensors", ".ckpt")
VAE_PREFIX = "first_stage_model."  # of names in single files
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # names in .safetensors files
HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"  # [out, in, 3, 3]
LATENT_CHANNELS = 4  # inpainting, depth and upscaling models have further input channels
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of model, with what tells it from the others, so that a user who has another one is told what to do."""

    title: str
    article: str
    example: str  # a hub id
    encoders: tuple[str, ...]  # how names in a single file begin, all of them
    use: str  # the remedy for those who have such a model

    @property
    def a(self) -> str:
        return f"{self.article} {self.title}"


SDXL = Kind(
    "SDXL", "an", "stabilityai/stable-diffusion-xl-base-1.0",
    ("conditioner.embedders.0.transformer.", "conditioner.embedders.1."),
    "train_lora-scale-xl.py and sample_slider-xl.py",
)  # fmt: skip
SD1 = Kind(
    "Stable Diffusion 1", "a", "stable-diffusion-v1-5/stable-diffusion-v1-5", ("cond_stage_model.transformer.",),
    "train_lora-scale.py and sample_slider.py, without pretrained_model.v2 and --v2",
)  # fmt: skip
SD2 = Kind(
    "Stable Diffusion 2", "a", "stabilityai/stable-diffusion-2-1", ("cond_stage_model.model.",),
    "train_lora-scale.py with pretrained_model.v2: true, and sample_slider.py with --v2",
)  # fmt: skip
KINDS = (SDXL, SD1, SD2)


def kind_of_unet(config: Mapping) -> Kind:
    """config: of a UNet2DConditionModel. SD 2's transformers project with linear layers, SD 1's with convolutions."""
    if config.get("addition_embed_type") == "text_time":
        return SDXL
    return SD2 if config.get("use_linear_projection") else SD1


def check_unet(name: str, config: Mapping, wanted: Kind) -> None:
    """Raises InputError if a UNet with this config is not that of a base model of the wanted kind."""
    check_channels(name, config.get("in_channels", LATENT_CHANNELS), wanted)
    found = kind_of_unet(config)
    if found is not wanted:
        raise InputError(
            f"pretrained_model.name_or_path: {name} is {found.a} model, not {wanted.a} one: choose {wanted.a} model, or use {found.use}."
        )


def check_channels(name: str, channels: int, wanted: Kind) -> None:
    """Raises InputError unless the UNet's input is latents alone."""
    if channels != LATENT_CHANNELS:
        raise InputError(not_a_base_model(name, wanted))


def not_a_base_model(name: str, wanted: Kind) -> str:
    return (
        f"pretrained_model.name_or_path: {name} is not {wanted.a} base model (an inpainting model or a "
        "refiner?): choose a base model."
    )


def check_source(settings: PretrainedModel, wanted: Kind) -> tuple[bool, bool] | None:
    """Returns (v-prediction, zero terminal SNR) as a single file's keys announce them, None for other sources.

    Raises InputError if the path does not exist, cannot be read or is not a model of the wanted kind. Hub ids are not
    looked up.
    """
    name, path = settings.name_or_path, Path(settings.name_or_path)
    if name == TINY:
        return None
    if path.is_dir():
        _check_folder(path, wanted)
        return None
    if path.suffix.lower() in SINGLE_FILES:
        if not path.is_file():
            raise InputError(f"pretrained_model.name_or_path: {path} does not exist: check the path.")
        if settings.config is not None and not (Path(settings.config) / "model_index.json").is_file():
            raise InputError(
                f"pretrained_model.config: {settings.config} contains no model_index.json: use a diffusers folder."
            )
        return _check_single_file(path, wanted)
    if not re.fullmatch(HUB_ID, name):
        raise InputError(
            f"pretrained_model.name_or_path: {name} is neither an existing folder, .safetensors or .ckpt file, nor a hub id like "
            f"{wanted.example}: check it."
        )
    return None


def _check_folder(path: Path, wanted: Kind) -> None:
    try:
        name = str(json.loads((path / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"pretrained_model.name_or_path: {path} contains no readable model_index.json: use a diffusers folder."
        ) from error
    config = unet_config(path)
    if config is not None and name.startswith("StableDiffusion"):
        check_unet(str(path), config, wanted)
    ours = "StableDiffusionXL" if wanted is SDXL else "StableDiffusion"
    others = "StableDiffusion3" if wanted is SDXL else ("StableDiffusion3", "StableDiffusionXL")
    if not name.startswith(ours) or name.startswith(others):
        raise InputError(
            f"pretrained_model.name_or_path: {path} is a {name}, but only {wanted.title} is supported: choose {wanted.a} model."
        )


def unet_config(folder: Path) -> dict | None:
    """The UNet's config in a diffusers folder, None if it cannot be read."""
    try:
        return dict(json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _check_single_file(path: Path, wanted: Kind) -> tuple[bool, bool]:
    shapes = _shapes_of_safetensors(path) if path.suffix.lower() == ".safetensors" else _shapes_of_ckpt(path)
    found = next((kind for kind in KINDS if all(any(k.startswith(e) for k in shapes) for e in kind.encoders)), None)
    if found is None:
        raise InputError(
            f"pretrained_model.name_or_path: {path} is not {wanted.a} checkpoint (a LoRA, a UNet alone?): choose {wanted.a} one."
        )
    if found is not wanted:
        raise InputError(
            f"pretrained_model.name_or_path: {path} is not {wanted.a} checkpoint but {found.a} one: choose {wanted.a} one, "
            f"or use {found.use}."
        )
    check_channels(str(path), (*shapes.get(FIRST_CONVOLUTION, ()), LATENT_CHANNELS, LATENT_CHANNELS)[1], wanted)
    return "v_pred" in shapes, "ztsnr" in shapes


def stored_dtype(path: Path) -> torch.dtype | None:
    """The dtype of all weights but the VAE's in a .safetensors file. None if they have several, and for a .ckpt."""
    if path.suffix.lower() != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys() if not key.startswith(VAE_PREFIX)}  # noqa: SIM118
    kinds -= {"I64"}  # position ids
    return STORED.get(kinds.pop()) if len(kinds) == 1 else None


def _shapes_of_safetensors(path: Path) -> dict[str, Shape]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise InputError(f"pretrained_model.name_or_path: {path} {cannot_be_read(error)}.") from error
    except SafetensorError as error:
        raise InputError(
            f"pretrained_model.name_or_path: {path} is not a complete .safetensors file: download it again."
        ) from error


def _shapes_of_ckpt(path: Path) -> dict[str, Shape]:
    """Reads it with torch's weights-only unpickler, which runs no code. Mapping avoids reading the weights."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return {key: tuple(getattr(value, "shape", ())) for key, value in state.get("state_dict", state).items()}
    except Exception as error:  # unpickling untrusted bytes can raise nearly anything
        raise InputError(
            f"pretrained_model.name_or_path: {path} is damaged, or contains code, which is never run: use a .safetensors file."
        ) from error

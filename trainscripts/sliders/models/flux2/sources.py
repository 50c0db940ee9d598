"""Where a FLUX.2 [klein] 4B comes from: a hub id or a diffusers folder, checked before its weights are loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from sliders.compute.device import refuse_nonfinite
from sliders.config.families import KLEIN
from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import folders
from sliders.models.diffusers_unet.folders import TINY, Weights
from sliders.models.diffusers_unet.sources import HUB_ID, loading, place_of
from sliders.models.flux2.keys import DOUBLE, SINGLE
from sliders.system.errors import InputError, first_line

PARTS = {"transformer": "transformer", "vae": "VAE", "text_encoder": "text encoder"}
SMALLER = f"choose {KLEIN.title}"
USUAL = {"guidance_embeds": False, "patch_size": 1, "in_channels": 128}  # what the denoiser's calls provide for
REFUSED = {  # settings of other families' models
    "v2": "is for Stable Diffusion 2",
    "v_pred": "is for models of noise or v, and this one predicts velocities",
    "clip_skip": "is for CLIP, and this model reads fixed layers of Qwen3",
    "config": "is for single files, and this model comes from a hub id or a diffusers folder",
}


def check_source(settings: PretrainedModel) -> Path | None:
    """Returns the diffusers folder, None for hub ids, which are not looked up, and for `tiny`.

    Raises InputError if it does not exist, cannot be read, is not whole or not a FLUX.2 [klein] 4B.
    """
    for key, reason in REFUSED.items():
        if getattr(settings, key) not in (None, False):
            raise InputError(f"pretrained_model.{key}: {getattr(settings, key)} {reason}: remove it.")
    name, place = settings.name_or_path, place_of(settings)
    if name == TINY:
        return None
    path = Path(name)
    if path.is_dir():
        inspect_folder(path, place)
        return path
    if path.is_file():
        raise InputError(
            f"{place} is a single file, of which no text encoder is part: use a diffusers folder or a hub id."
        )
    if not re.fullmatch(HUB_ID, name):
        raise InputError(f"{place} is neither an existing folder nor a hub id like {KLEIN.example}: check it.")
    return None


def inspect_folder(folder: Path, place: str) -> None:
    """Raises InputError unless a diffusers folder holds a whole FLUX.2 [klein] 4B, or a narrower one."""
    index = folders.read_json(folder / "model_index.json", place)
    name = index.get("_class_name")
    if name != Flux2KleinPipeline.__name__:
        raise InputError(f"{place} is a {name}, but only {Flux2KleinPipeline.__name__} is supported: {SMALLER}.")
    configs = {part: folders.part_config(folder, part, place) for part in PARTS}
    _check_configs(configs, place)
    for part, config in configs.items():
        with loading(part, place):
            shapes = {key: tuple(tensor.shape) for key, tensor in build_empty(part, config).state_dict().items()}
        if config.get("tie_word_embeddings"):
            shapes.pop("lm_head.weight", None)
        _check_weights(folders.part_weights(folder, part, place), shapes, f"{place}: {part}")


def _check_configs(configs: Mapping[str, Mapping], place: str) -> None:
    transformer = configs["transformer"]
    for key, usual in USUAL.items():
        if transformer.get(key, usual) != usual:
            raise InputError(f"{place}: its transformer has {key} {transformer[key]}, not {usual}: {SMALLER}.")
    found = transformer.get("num_layers", DOUBLE), transformer.get("num_single_layers", SINGLE)
    if found[0] > DOUBLE or found[1] > SINGLE:
        raise InputError(
            f"{place}: its transformer has {found[0]} + {found[1]} blocks, and the 4B model {DOUBLE} + {SINGLE} (is it the 9B one?): "
            f"{SMALLER}."
        )
    width = 3 * configs["text_encoder"].get("hidden_size", 0)
    if transformer.get("joint_attention_dim") != width:
        raise InputError(
            f"{place}: its transformer reads {transformer.get('joint_attention_dim')} values per token of a prompt, but three states "
            f"of its text encoder have {width}: use a complete folder of one model."
        )


def _check_weights(weights: Weights, shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    missing = shapes.keys() - weights.stored.keys()
    if missing:
        raise InputError(f"{place} lacks {len(missing)} weight(s), such as {min(missing)}: download the model again.")
    for key, shape in shapes.items():
        if tuple(weights.stored[key].shape) != shape:
            raise InputError(
                f"{place}: {key} has the shape {list(weights.stored[key].shape)}, and its config.json says {list(shape)}: download the "
                "model again."
            )


def build_empty(part: str, config: Mapping[str, Any]) -> nn.Module:
    """A part of the pipeline with its parameters on the meta device. Raises what the libraries raise for a wrong config."""
    with init_empty_weights():
        if part == "text_encoder":
            return Qwen3ForCausalLM(Qwen3Config.from_dict(dict(config)))
        return (AutoencoderKLFlux2 if part == "vae" else Flux2Transformer2DModel).from_config(dict(config))


def is_distilled(name_or_path: str) -> bool:
    """Whether a model is known to be the step-distilled one: a folder says so, of a hub id only the usual name is known."""
    path = Path(name_or_path)
    if path.is_dir():
        return bool(folders.read_json(path / "model_index.json", name_or_path).get("is_distilled"))
    return re.fullmatch(r"[\w.-]+/FLUX\.2-klein-4B", name_or_path, re.IGNORECASE) is not None


def load_pipeline(settings: PretrainedModel, dtype: torch.dtype) -> Flux2KleinPipeline:
    """From a hub id or a folder, on the CPU, its VAE in float32, the rest in `dtype`. Raises InputError."""
    place, folder = place_of(settings), check_source(settings)
    if folder is None:
        folder = _hub_folder(settings.name_or_path, place)
        inspect_folder(folder, place)
    dtypes = {"default": dtype, "vae": torch.float32}
    with loading("pipeline", place):
        pipe = Flux2KleinPipeline.from_pretrained(str(folder), local_files_only=True, dtype=dtypes)
    # the others are checked where they are placed
    refuse_nonfinite(pipe.vae, {name: p.isfinite().all() for name, p in pipe.vae.named_parameters()})
    return pipe


def _hub_folder(name: str, place: str) -> Path:
    """Prefers cached files to a download."""
    if folder := folders.cached_folder(Flux2KleinPipeline, name, PARTS):
        return folder
    folders.check_reachable(name, place, "check the name, or connect to the network once")
    try:
        return folders.downloaded_folder(Flux2KleinPipeline, name)
    except Exception as error:  # of the hub, the network and the disk
        raise InputError(
            f"{place} cannot be downloaded ({first_line(error).rstrip('.')}): check the hub id, the network and the free disk space."
        ) from error

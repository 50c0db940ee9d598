"""Where a FLUX.2 [klein] 4B comes from: a hub id, a diffusers folder, or a file with its transformer and a folder with the
rest. All is checked before weights are loaded.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
from sliders.models.flux2.architecture import join_projections
from sliders.models.flux2.configs import TRANSFORMER
from sliders.models.flux2.keys import DOUBLE, SINGLE
from sliders.models.flux2.single_file import SIZES, config_of, original_key, prefix_of, state_of
from sliders.models.folders import hub_folder, part_config, part_weights, read_json
from sliders.models.places import HUB_ID, TINY, loading, place_of
from sliders.system.errors import InputError
from sliders.system.weight_files import WeightFile, open_weights

PARTS = ("transformer", "vae", "text_encoder")
SMALLER = f"choose {KLEIN.title}"
USUAL = {"guidance_embeds": False, "patch_size": 1, "in_channels": 128}  # what the denoiser's calls provide for
REFUSED = {  # settings of other families' models
    "v2": "is for Stable Diffusion 2",
    "v_pred": "is for models of noise or v, and this one predicts velocities",
    "clip_skip": "is for CLIP, and this model reads fixed layers of Qwen3",
}


@dataclass(frozen=True)
class Source:
    """A model that has passed every check that needs no weights."""

    folder: Path | None  # of the pipeline, or beside a single file of the rest of it; None: the hub's
    file: WeightFile | None = None  # with the transformer


def check_source(settings: PretrainedModel) -> Source:
    """Hub ids are not looked up. Raises InputError if a file or folder does not exist, cannot be read, is not whole or not
    a FLUX.2 [klein] 4B.
    """
    for key, reason in REFUSED.items():
        if getattr(settings, key) not in (None, False):
            raise InputError(f"pretrained_model.{key}: {getattr(settings, key)} {reason}: remove it.")
    name, place = settings.name_or_path, place_of(settings)
    path, config = Path(name), settings.config
    if path.is_file():
        file = open_weights(path, place)
        transformer = inspect_file(file, place)
        if config is not None:
            inspect_folder(Path(config), f"pretrained_model.config: {config}", transformer)
        return Source(config and Path(config), file)
    if config is not None:
        raise InputError(f"pretrained_model.config: {config} is for single files, and {name} is none: remove it.")
    if name == TINY:
        return Source(None)
    if path.is_dir():
        inspect_folder(path, place)
        return Source(path)
    if not re.fullmatch(HUB_ID, name):
        raise InputError(f"{place} is neither an existing folder or file nor a hub id like {KLEIN.example}: check it.")
    return Source(None)


def inspect_file(file: WeightFile, place: str) -> dict[str, Any]:
    """Returns the config of the transformer in a file. Raises InputError unless it is that of a whole 4B model."""
    prefix = prefix_of(file.stored)
    if prefix is None:
        raise InputError(f"{place} holds no transformer of FLUX.2 (keys like {SIZES[0]}): {SMALLER}.")
    shapes = {key.removeprefix(prefix): shape for key, shape in file.shapes.items() if key.startswith(prefix)}
    config = config_of(shapes)
    _check_transformer(config, place)
    with loading("transformer", place):
        wanted = build_joined(config).state_dict()
    _check_weights(shapes, {original_key(name): tuple(empty.shape) for name, empty in wanted.items()}, place)
    return config


def inspect_folder(folder: Path, place: str, transformer: Mapping | None = None) -> None:
    """Raises InputError unless a diffusers folder holds a whole FLUX.2 [klein] 4B, or a narrower one.

    transformer: the config of one that is used instead of the folder's.
    """
    index = read_json(folder / "model_index.json", place)
    name = index.get("_class_name")
    if name != Flux2KleinPipeline.__name__:
        raise InputError(f"{place} is a {name}, but only {Flux2KleinPipeline.__name__} is supported: {SMALLER}.")
    parts = PARTS if transformer is None else [part for part in PARTS if part != "transformer"]
    configs = {part: part_config(folder, part, place) for part in parts}
    if transformer is None:
        _check_transformer(configs["transformer"], place)
    _check_width(transformer or configs["transformer"], configs["text_encoder"], place)
    for part, config in configs.items():
        with loading(part, place):
            shapes = {key: tuple(tensor.shape) for key, tensor in build_empty(part, config).state_dict().items()}
        if config.get("tie_word_embeddings"):
            shapes.pop("lm_head.weight", None)
        stored = part_weights(folder, part, place).stored
        _check_weights({key: found.shape for key, found in stored.items()}, shapes, f"{place}: {part}")


def _check_transformer(transformer: Mapping, place: str) -> None:
    for key, usual in USUAL.items():
        if transformer.get(key, usual) != usual:
            raise InputError(f"{place}: its transformer has {key} {transformer[key]}, not {usual}: {SMALLER}.")
    found = transformer.get("num_layers", DOUBLE), transformer.get("num_single_layers", SINGLE)
    if found[0] > DOUBLE or found[1] > SINGLE:
        raise InputError(
            f"{place}: its transformer has {found[0]} + {found[1]} blocks, and the 4B model {DOUBLE} + {SINGLE} (is it the 9B one?): "
            f"{SMALLER}."
        )


def _check_width(transformer: Mapping, text_encoder: Mapping, place: str) -> None:
    width = 3 * text_encoder.get("hidden_size", 0)
    if transformer.get("joint_attention_dim") != width:
        raise InputError(
            f"{place}: its transformer reads {transformer.get('joint_attention_dim')} values per token of a prompt, but three states "
            f"of its text encoder have {width}: use a complete folder of one model."
        )


def _check_weights(stored: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], place: str) -> None:
    missing = shapes.keys() - stored.keys()
    if missing:
        raise InputError(f"{place} lacks {len(missing)} weight(s), such as {min(missing)}: download the model again.")
    for key, shape in shapes.items():
        if tuple(stored[key]) != shape:
            raise InputError(
                f"{place}: {key} has the shape {list(stored[key])}, and the model's is {list(shape)}: download the model again."
            )


def build_empty(part: str, config: Mapping[str, Any]) -> nn.Module:
    """A part of the pipeline with its parameters on the meta device. Raises what the libraries raise for a wrong config."""
    with init_empty_weights():
        if part == "text_encoder":
            return Qwen3ForCausalLM(Qwen3Config.from_dict(dict(config)))
        return (AutoencoderKLFlux2 if part == "vae" else Flux2Transformer2DModel).from_config(dict(config))


def transformer_config(name_or_path: str) -> Mapping[str, Any]:
    """The config of a folder's or a file's transformer, or for a hub id the usual one. Raises InputError."""
    path = Path(name_or_path)
    if path.is_file():
        return inspect_file(open_weights(path, f"{name_or_path}:"), f"{name_or_path}:")
    return part_config(path, "transformer", name_or_path) if path.is_dir() else TRANSFORMER


def is_distilled(name_or_path: str) -> bool:
    """Whether a model is known to be the step-distilled one: a folder says so, of a hub id only the usual name is known."""
    path = Path(name_or_path)
    if path.is_dir():
        return bool(read_json(path / "model_index.json", name_or_path).get("is_distilled"))
    return re.fullmatch(r"[\w.-]+/FLUX\.2-klein-4B", name_or_path, re.IGNORECASE) is not None


def load_pipeline(settings: PretrainedModel, dtype: torch.dtype) -> Flux2KleinPipeline:
    """From a hub id or a folder, on the CPU, its VAE in float32, the rest in `dtype`. Raises InputError."""
    place, source = place_of(settings), check_source(settings)
    folder, parts = source.folder, {}
    if source.file is not None:
        transformer = inspect_file(source.file, place)
        parts["transformer"] = _read_transformer(source.file, transformer, dtype, place)
        if folder is None:
            folder = _hub_folder(KLEIN.example, place)
            inspect_folder(folder, f"{place}: {KLEIN.example}", transformer)
    elif folder is None:
        folder = _hub_folder(settings.name_or_path, place)
        inspect_folder(folder, place)
    dtypes = {"default": dtype, "vae": torch.float32}
    with loading("pipeline", place):
        pipe = Flux2KleinPipeline.from_pretrained(str(folder), local_files_only=True, dtype=dtypes, **parts)
    # the others are checked where they are placed
    refuse_nonfinite(pipe.vae, {name: p.isfinite().all() for name, p in pipe.vae.named_parameters()})
    return pipe


def _read_transformer(
    file: WeightFile, config: Mapping[str, Any], dtype: torch.dtype, place: str
) -> Flux2Transformer2DModel:
    prefix = prefix_of(file.stored)
    with loading("transformer", place):
        transformer = build_joined(config)
        tensors = file.read(key for key in file.stored if key.startswith(prefix))
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        transformer.load_state_dict(state_of(tensors, transformer.state_dict(), dtype), assign=True)
    return transformer


def build_joined(config: Mapping[str, Any]) -> Flux2Transformer2DModel:
    """The transformer that is adapted, with its parameters on the meta device. Raises what diffusers raises for a wrong config."""
    return join_projections(build_empty("transformer", config))


def _hub_folder(name: str, place: str) -> Path:
    return hub_folder(Flux2KleinPipeline, name, PARTS, place, partial(_check_on_hub, name, place))


def _check_on_hub(name: str, place: str, cached: bool) -> None:
    with suppress(OSError, ValueError):
        _check_transformer(
            Flux2Transformer2DModel.load_config(name, subfolder="transformer", local_files_only=cached), place
        )

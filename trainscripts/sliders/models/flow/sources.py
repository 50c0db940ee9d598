"""Where a flow model comes from: a hub id, a diffusers folder, or a file with its transformer and a folder with the rest.
All is checked before weights are loaded.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from sliders.compute.device import refuse_nonfinite
from sliders.config.schema import PretrainedModel
from sliders.models.flow.kinds import Kind
from sliders.models.flow.text_encoder import StoredEncoder
from sliders.models.folders import hub_folder, part_config, part_weights, read_json
from sliders.models.places import HUB_ID, TINY, loading, place_of
from sliders.system.errors import InputError
from sliders.system.weight_files import WeightFile, open_weights

PARTS = ("transformer", "vae", "text_encoder")
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")  # before all keys of a single file
REFUSED = {  # settings of other families' models
    "v2": "is for Stable Diffusion 2",
    "v_pred": "is for models of noise or v, and this one predicts velocities",
    "clip_skip": "is for CLIP, and this model reads fixed layers of Qwen3",
}


@dataclass(frozen=True)
class Source:
    """A model that has passed every check that needs no weights."""

    folder: Path | None  # of the pipeline, or beside a single file of the rest of it; None: the hub's
    file: WeightFile | None = None  # with the transformer,
    transformer: Mapping[str, Any] | None = None  # and that one's config


def check_source(settings: PretrainedModel, kind: Kind) -> Source:
    """Hub ids are not looked up. Raises InputError if a file or folder does not exist, cannot be read, is not whole or not
    of this kind.
    """
    for key, reason in REFUSED.items():
        if getattr(settings, key) not in (None, False):
            raise InputError(f"pretrained_model.{key}: {getattr(settings, key)} {reason}: remove it.")
    name, place = settings.name_or_path, place_of(settings)
    path, config = Path(name), settings.config
    if path.is_file():
        file = open_weights(path, place)
        transformer = inspect_file(file, kind, place)
        if config is not None:
            inspect_folder(Path(config), kind, f"pretrained_model.config: {config}", transformer)
        return Source(config and Path(config), file, transformer)
    if config is not None:
        raise InputError(f"pretrained_model.config: {config} is for single files, and {name} is none: remove it.")
    if name == TINY:
        return Source(None)
    if path.is_dir():
        inspect_folder(path, kind, place)
        return Source(path)
    if not re.fullmatch(HUB_ID, name):
        raise InputError(
            f"{place} is neither an existing folder or file nor a hub id like {kind.facts.example}: check it."
        )
    return Source(None)


def inspect_file(file: WeightFile, kind: Kind, place: str) -> dict[str, Any]:
    """Returns the config of the transformer in a file. Raises InputError unless it is a whole one of this kind."""
    prefix, single = _prefix_of(file, kind), kind.single_file
    if prefix is None:
        raise InputError(
            f"{place} holds no transformer of {kind.facts.title} (keys like {single.telling[0]}): choose {kind.facts.title}."
        )
    shapes = {key.removeprefix(prefix): shape for key, shape in file.shapes.items() if key.startswith(prefix)}
    with loading("transformer", place):
        config = single.config_of(shapes)
    _check_transformer(config, kind, place)
    with loading("transformer", place):
        wanted = kind.build_adapted(config).state_dict()
    _check_weights(shapes, single.shapes_of(wanted), place)
    return config


def _prefix_of(file: WeightFile, kind: Kind) -> str | None:
    """What stands before the original names in a file, None if it holds no transformer of this kind."""
    telling = kind.single_file.telling
    return next((prefix for prefix in PREFIXES if all(f"{prefix}{key}" in file.stored for key in telling)), None)


def inspect_folder(folder: Path, kind: Kind, place: str, transformer: Mapping | None = None) -> None:
    """Raises InputError unless a diffusers folder holds a whole model of this kind, or a narrower one.

    transformer: the config of one that is used instead of the folder's.
    """
    index = read_json(folder / "model_index.json", place)
    name = index.get("_class_name")
    if name != kind.pipeline.__name__:
        raise InputError(
            f"{place} is a {name}, but only {kind.pipeline.__name__} is supported: choose {kind.facts.title}."
        )
    parts = PARTS if transformer is None else [part for part in PARTS if part != "transformer"]
    configs = {part: part_config(folder, part, place) for part in parts}
    if transformer is None:
        _check_transformer(configs["transformer"], kind, place)
    _check_width(transformer or configs["transformer"], configs["text_encoder"], kind, place)
    for part, config in configs.items():
        with loading(part, place):
            shapes = {key: tuple(tensor.shape) for key, tensor in kind.build_empty(part, config).state_dict().items()}
        if config.get("tie_word_embeddings"):
            shapes.pop("lm_head.weight", None)
        stored = part_weights(folder, part, place).stored
        _check_weights({key: found.shape for key, found in stored.items()}, shapes, f"{place}: {part}")


def _check_transformer(transformer: Mapping, kind: Kind, place: str) -> None:
    for key in kind.fixed:
        usual = kind.usual[key]
        if transformer.get(key, usual) != usual:
            raise InputError(
                f"{place}: its transformer has {key} {transformer[key]}, not {usual}: choose {kind.facts.title}."
            )
    kind.check(transformer, place)


def _check_width(transformer: Mapping, text_encoder: Mapping, kind: Kind, place: str) -> None:
    width, read = kind.states * text_encoder.get("hidden_size", 0), transformer.get(kind.prompt)
    if read != width:
        raise InputError(
            f"{place}: its transformer reads {read} values per token of a prompt, but {kind.states} state(s) of its text encoder have "
            f"{width}: use a complete folder of one model."
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


def transformer_config(name_or_path: str, kind: Kind) -> Mapping[str, Any]:
    """The config of a folder's or a file's transformer, or for a hub id the usual one. Raises InputError."""
    path = Path(name_or_path)
    if name_or_path == TINY:
        return kind.narrow
    if path.is_file():
        return inspect_file(open_weights(path, f"{name_or_path}:"), kind, f"{name_or_path}:")
    return part_config(path, "transformer", name_or_path) if path.is_dir() else kind.usual


def load_pipeline(settings: PretrainedModel, kind: Kind, dtype: torch.dtype) -> tuple[DiffusionPipeline, StoredEncoder]:
    """From a hub id, a folder or a file, on the CPU, its VAE in float32, its transformer in `dtype`. Raises InputError.

    The text encoder is left to be loaded.
    """
    place, source = place_of(settings), check_source(settings, kind)
    folder, parts = source.folder, {}
    if source.file is not None:
        parts["transformer"] = _read_transformer(source.file, source.transformer, kind, dtype, place)
        if folder is None:
            folder = _hub_folder(kind.facts.example, kind, place)
            inspect_folder(folder, kind, f"{place}: {kind.facts.example}", source.transformer)
    elif folder is None:
        folder = _hub_folder(settings.name_or_path, kind, place)
        inspect_folder(folder, kind, place)
    dtypes = {"default": dtype, "vae": torch.float32}
    with loading("pipeline", place):
        parts |= {"text_encoder": None}
        pipe = kind.pipeline.from_pretrained(str(folder), local_files_only=True, dtype=dtypes, **parts)
    # the others are checked where they are placed
    refuse_nonfinite(pipe.vae, {name: p.isfinite().all() for name, p in pipe.vae.named_parameters()})
    return pipe, StoredEncoder(Path(folder), kind, dtype, place)


def _read_transformer(
    file: WeightFile, config: Mapping[str, Any], kind: Kind, dtype: torch.dtype, place: str
) -> nn.Module:
    prefix = _prefix_of(file, kind)
    with loading("transformer", place):
        transformer = kind.build_adapted(config)
        tensors = file.read(key for key in file.stored if key.startswith(prefix))
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        state = kind.single_file.state_of(tensors, transformer.state_dict(), dtype)
        transformer.load_state_dict(state, assign=True)
    return transformer


def _hub_folder(name: str, kind: Kind, place: str) -> Path:
    return hub_folder(kind.pipeline, name, PARTS, place, partial(_check_on_hub, name, kind, place))


def _check_on_hub(name: str, kind: Kind, place: str, cached: bool) -> None:
    with suppress(OSError, ValueError):
        config = kind.transformer.load_config(name, subfolder="transformer", local_files_only=cached)
        _check_transformer(config, kind, place)

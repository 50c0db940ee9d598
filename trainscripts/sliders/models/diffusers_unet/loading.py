"""Loads a diffusers pipeline from a hub id, a diffusers folder or a single file, with the noise that it was trained with."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn

from sliders.compute.device import place as place_weights
from sliders.compute.device import refuse_nonfinite
from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet import inventory
from sliders.models.diffusers_unet.kinds import Kind, check_unet
from sliders.models.diffusers_unet.noise import Statement, find_noise
from sliders.models.diffusers_unet.sources import (
    Part,
    Source,
    check_source,
    inspect_file,
    inspect_folder,
)
from sliders.models.diffusers_unet.weightless import build_empty
from sliders.models.folders import hub_folder, json_folder
from sliders.models.objective import Objective
from sliders.models.places import TINY, loading, place_of

KEPT = (torch.float32, torch.float16, torch.bfloat16)  # dtypes that weights may have until they are placed


def load_pipeline(
    pipeline: type[DiffusionPipeline], kind: Kind, settings: PretrainedModel, dtype: torch.dtype,
    base: Mapping[str, Mapping], build_tiny: Callable[[], DiffusionPipeline], **options,
) -> tuple[DiffusionPipeline, Objective]:  # fmt: skip
    """Returns the pipeline on the CPU, its VAE in float32, the rest in `dtype`, or for `place` to convert; and its objective.

    base: the configs of the usual model's parts. options: for the pipeline's loader. Raises InputError if the source is
    missing, damaged, not whole, of another kind or of another noise.
    """
    place = place_of(settings)
    if settings.name_or_path == TINY:
        pipe = build_tiny()
        for name in kind.parts:
            place_weights(getattr(pipe, name), "cpu", torch.float32 if name == "vae" else dtype)
        objective, pipe.scheduler, note = find_noise(settings, pipe.scheduler, True, Statement(), place)
    else:
        source = check_source(settings, kind, base)
        if source is None:
            source = inspect_folder(_hub_folder(pipeline, kind, settings.name_or_path, place), place, kind)
        elif source.folder is None:
            folder = json_folder(kind.facts.example, place)
            source = inspect_file(Path(settings.name_or_path), place, kind, folder, base)
        objective, scheduler, note = find_noise(settings, source.scheduler, source.own, source.statement, place)
        pipe = _load(pipeline, replace(source, scheduler=scheduler), dtype, place, options)
    if note:
        print(f"note: {note}")
    return pipe, objective


def _hub_folder(pipeline: type[DiffusionPipeline], kind: Kind, name: str, place: str) -> Path:
    return hub_folder(pipeline, name, kind.parts, place, partial(_check_kind_on_hub, name, kind, place))


def _check_kind_on_hub(name: str, kind: Kind, place: str, cached: bool) -> None:
    config = None
    with suppress(OSError, ValueError):
        config = UNet2DConditionModel.load_config(name, subfolder="unet", local_files_only=cached)
    if config is not None:
        check_unet(config, kind, place)


def _load(
    pipeline: type[DiffusionPipeline], source: Source, dtype: torch.dtype, place: str, options: Mapping
) -> DiffusionPipeline:
    parts = {}
    kept = _kept_dtype(source) or dtype
    for name, part in source.parts.items():
        with loading(name, place):
            parts[name] = _load_part(name, part, torch.float32 if name == "vae" else kept)
        parts[name].name_or_path = place  # for `refuse_nonfinite`
        if name == "vae":  # the others are checked where they are placed
            refuse_nonfinite(parts[name], {n: p.isfinite().all() for n, p in parts[name].named_parameters()})
    if not parts:
        options = {**options, "dtype": {"default": dtype, "vae": torch.float32}}
    with loading("pipeline", place):
        return pipeline.from_pretrained(
            str(source.folder), scheduler=source.scheduler, local_files_only=True, **parts, **options
        )


def _kept_dtype(source: Source) -> torch.dtype | None:
    """The dtype of all weights of a single file but the VAE's: they stay in it, and need not be read yet, nor copied.

    None if they have several, if it is one to store weights in alone, or if they are not pages of the file.
    """
    parts = [part for name, part in source.parts.items() if name != "vae"]
    if source.own or not all(part.weights.mapped for part in parts):
        return None
    dtypes = {part.weights.stored[found.origin.key].dtype for part in parts for found in part.found.values()}
    scaled = any(found.scale for part in parts for found in part.found.values())
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= {*KEPT} and not scaled else None


def _load_part(name: str, part: Part, dtype: torch.dtype) -> nn.Module:
    """A part with its weights, read from a mapping of its own: the pages of one can go before those of the next come."""
    module = build_empty(name, part.config)
    tensors = part.weights.read({key for f in part.found.values() for key in (f.origin.key, f.scale) if key})
    state = {}
    for parameter, empty in module.state_dict().items():
        state[parameter] = inventory.value(part.found[parameter], tensors, tuple(empty.shape)).to(dtype)
    module.load_state_dict(state, assign=True)
    return module

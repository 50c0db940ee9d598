"""Loads a diffusers pipeline from a hub id, a diffusers folder or a single file, and finds out what noise it was trained with."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from safetensors import SafetensorError

from sliders.config.schema import PretrainedModel
from sliders.models.diffusers_unet.sources import (
    SINGLE_FILES,
    TINY,
    Kind,
    check_unet,
    not_a_base_model,
    stored_dtype,
)
from sliders.models.schedule import EPSILON, V_PREDICTION, NoiseSchedule
from sliders.system.errors import InputError, first_line


def load_pipeline(
    pipeline: type[DiffusionPipeline], kind: Kind, settings: PretrainedModel, dtype: torch.dtype,
    build_tiny: Callable[[], DiffusionPipeline], **options,
) -> DiffusionPipeline:  # fmt: skip
    """Returns the pipeline on the CPU, its VAE in float32, the rest in `dtype`, or for `place` to convert.

    options: for the pipeline's loaders. Raises InputError if the source is missing, damaged or of another kind.
    """
    name = settings.name_or_path
    try:
        if name == TINY:
            pipe = build_tiny().to(dtype)
            pipe.vae.float()
        elif Path(name).suffix.lower() in SINGLE_FILES and Path(name).is_file():
            pipe = _load_single_file(pipeline, settings, dtype, options)
        else:
            pipe = _load_folder_or_hub(pipeline, kind, name, dtype, options)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(_cannot_load(name, kind, error)) from error
    check_unet(name, pipe.unet.config, kind)
    if pipe.text_encoder is None:
        raise InputError(not_a_base_model(name, kind))
    _check_whole(pipe, name, kind)
    return pipe


def _load_single_file(
    pipeline: type[DiffusionPipeline], settings: PretrainedModel, dtype: torch.dtype, options: dict
) -> DiffusionPipeline:
    """Weights of a .safetensors file stay in its dtype if they all have the same: they need not be read yet, nor copied.

    Code in a .ckpt is not run: diffusers reads it with torch's weights-only unpickler.
    """
    path, config = settings.name_or_path, settings.config

    def part(cls: type, name: str, dtype: torch.dtype) -> torch.nn.Module:
        place = {} if config is None else {"config": config, "subfolder": name}
        return cls.from_single_file(path, dtype=dtype, **place)

    dtype = stored_dtype(Path(path)) or dtype
    vae = part(AutoencoderKL, "vae", torch.float32)
    unet = part(UNet2DConditionModel, "unet", dtype)  # its own mapping: the encoders' pages can go before its own come
    return pipeline.from_single_file(path, vae=vae, unet=unet, dtype=dtype, config=config, **options)


def _load_folder_or_hub(
    pipeline: type[DiffusionPipeline], kind: Kind, name: str, dtype: torch.dtype, options: dict
) -> DiffusionPipeline:
    """For a hub id, prefers cached files to a download, and then half-precision files to full ones."""
    dtypes = {"default": dtype, "vae": torch.float32}
    load = partial(pipeline.from_pretrained, name, dtype=dtypes, **options)
    if not Path(name).is_dir():
        cached, half = {"local_files_only": True}, {"variant": "fp16"}
        for choice in (cached, cached | half):
            with suppress(OSError, ValueError):
                return load(**choice)
        config = None
        with suppress(OSError, ValueError):
            config = UNet2DConditionModel.load_config(name, subfolder="unet")
        if config is not None:
            check_unet(name, config, kind)  # before gigabytes of another kind are downloaded
        with suppress(OSError, ValueError):
            return load(**half)
    return load()


def _check_whole(pipe: DiffusionPipeline, name: str, kind: Kind) -> None:
    """Raises InputError if weights are missing: diffusers silently leaves them on the meta device."""
    parts = {n: part for n, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    missing = [f"{part}.{n}" for part, model in parts.items() for n, p in model.named_parameters() if p.is_meta]
    if missing:
        raise InputError(
            f"pretrained_model.name_or_path: {name} lacks {len(missing)} weights, such as {missing[0]}: "
            f"choose a complete {kind.title} checkpoint."
        )


def _cannot_load(name: str, kind: Kind, error: Exception) -> str:
    reason = first_line(error).rstrip(".")
    remedy = (
        f"choose a complete {kind.title} checkpoint or diffusers folder, and check that enough memory is free"
        if Path(name).exists()
        else "check the hub id, the network, and your access if the model is gated"
    )
    return f"pretrained_model.name_or_path: {name} cannot be loaded as {kind.title} ({reason}): {remedy}."


def set_noise(pipe: DiffusionPipeline, settings: PretrainedModel, announced: tuple[bool, bool] | None) -> NoiseSchedule:
    """Returns the noise of training, and makes the pipeline's scheduler sample accordingly.

    announced: (v-prediction, zero terminal SNR) if the source says so otherwise than by the scheduler's config.
    """
    config = dict(pipe.scheduler.config)
    announced_v, zero_snr = announced or (
        config.get("prediction_type") == V_PREDICTION,
        config.get("rescale_betas_zero_snr", False),
    )
    prediction = V_PREDICTION if _v_pred(settings, announced_v) else EPSILON
    pipe.scheduler = _sampling_scheduler(pipe.scheduler, prediction, bool(zero_snr))
    return NoiseSchedule.from_scheduler_config(config, prediction, bool(zero_snr))


def _sampling_scheduler(scheduler: SchedulerMixin, prediction: str, zero_snr: bool) -> SchedulerMixin:
    """The model's scheduler with what a single file's keys, or `v_pred`, state about the model."""
    stated = {"prediction_type": prediction}
    if zero_snr:  # sampling must start at the last timestep, where nothing is left of the image
        stated |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **stated)


def _v_pred(settings: PretrainedModel, announced: bool) -> bool:
    """Raises InputError for `v_pred: false` on a v-prediction model, whose slider would learn noise."""
    if settings.v_pred is False and announced:
        raise InputError(
            f"pretrained_model.v_pred: false, but {settings.name_or_path} is a v-prediction model: remove the key or set it to true."
        )
    return announced if settings.v_pred is None else settings.v_pred

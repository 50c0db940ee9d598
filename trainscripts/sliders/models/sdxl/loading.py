"""Loads SDXL from a hub id, a diffusers folder or a single file, or builds `tiny`."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from sliders.config.schema import PretrainedModel
from sliders.models.schedule import EPSILON, V_PREDICTION, NoiseSchedule
from sliders.models.sdxl.model import SDXL
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.models.sdxl.sources import SINGLE_FILES, TINY, check_source, stored_dtype
from sliders.system.errors import InputError, first_line


def load_sdxl(settings: PretrainedModel, dtype: torch.dtype) -> SDXL:
    """Returns the model on the CPU, its VAE in float32, the rest in `dtype`, or for `place` to convert.

    Raises InputError if the source is missing, damaged or not an SDXL base model.
    """
    announced = check_source(settings)
    try:
        if settings.name_or_path == TINY:
            pipe = build_narrow_sdxl().to(dtype)
            pipe.vae.float()
        else:
            pipe = _load_weights(settings, dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(_cannot_load(settings.name_or_path, error)) from error
    unet = pipe.unet
    if unet.config.in_channels != 4 or unet.config.addition_embed_type != "text_time" or pipe.text_encoder is None:
        raise InputError(
            f"pretrained_model.name_or_path: {settings.name_or_path} is not an SDXL base model (an inpainting model or a "
            "refiner?): choose a base model."
        )
    _check_whole(pipe, settings.name_or_path)
    config = dict(pipe.scheduler.config)
    announced_v, zero_snr = announced or (
        config.get("prediction_type") == V_PREDICTION,
        config.get("rescale_betas_zero_snr", False),
    )
    prediction = V_PREDICTION if _v_pred(settings, announced_v) else EPSILON
    schedule = NoiseSchedule.from_scheduler_config(config, prediction, bool(zero_snr))
    pipe.scheduler = _sampling_scheduler(pipe.scheduler, prediction, bool(zero_snr))
    return SDXL(pipe, schedule, settings.name_or_path, settings.clip_skip, dtype)


def _sampling_scheduler(scheduler: SchedulerMixin, prediction: str, zero_snr: bool) -> SchedulerMixin:
    """The model's scheduler with what a single file's keys, or `v_pred`, state about the model."""
    stated = {"prediction_type": prediction}
    if zero_snr:  # sampling must start at the last timestep, where nothing is left of the image
        stated |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **stated)


def _check_whole(pipe: StableDiffusionXLPipeline, name: str) -> None:
    """Raises InputError if weights are missing: diffusers silently leaves them on the meta device."""
    parts = {n: getattr(pipe, n) for n in ("unet", "vae", "text_encoder", "text_encoder_2")}
    missing = [f"{part}.{n}" for part, model in parts.items() for n, p in model.named_parameters() if p.is_meta]
    if missing:
        raise InputError(
            f"pretrained_model.name_or_path: {name} lacks {len(missing)} weights, such as {missing[0]}: choose a complete SDXL checkpoint."
        )


def _v_pred(settings: PretrainedModel, announced: bool) -> bool:
    """Raises InputError for `v_pred: false` on a v-prediction model, whose slider would learn noise."""
    if settings.v_pred is False and announced:
        raise InputError(
            f"pretrained_model.v_pred: false, but {settings.name_or_path} is a v-prediction model: remove the key or set it to true."
        )
    return announced if settings.v_pred is None else settings.v_pred


def _cannot_load(name: str, error: Exception) -> str:
    reason = first_line(error).rstrip(".")
    remedy = (
        "choose a complete SDXL checkpoint or diffusers folder, and check that enough memory is free"
        if Path(name).exists()
        else "check the hub id, the network, and your access if the model is gated"
    )
    return f"pretrained_model.name_or_path: {name} cannot be loaded as SDXL ({reason}): {remedy}."


def _load_weights(settings: PretrainedModel, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Weights of a .safetensors file stay in its dtype if they all have the same: they need not be read yet, nor copied.

    Code in a .ckpt is not run: diffusers reads it with torch's weights-only unpickler.
    """
    path, config = Path(settings.name_or_path), settings.config
    if path.suffix.lower() not in SINGLE_FILES or not path.is_file():
        return _load_folder_or_hub(settings.name_or_path, dtype)

    def part(cls: type, name: str, dtype: torch.dtype) -> torch.nn.Module:
        place = {} if config is None else {"config": config, "subfolder": name}
        return cls.from_single_file(str(path), dtype=dtype, **place)

    dtype = stored_dtype(path) or dtype
    return StableDiffusionXLPipeline.from_single_file(
        str(path),
        vae=part(AutoencoderKL, "vae", torch.float32),
        unet=part(
            UNet2DConditionModel, "unet", dtype
        ),  # a mapping of its own: the encoders' pages can go before its own come
        dtype=dtype,
        config=config,
        add_watermarker=False,
    )


def _load_folder_or_hub(name: str, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """For a hub id, prefers cached files to a download, and then half-precision files to full ones."""
    dtypes = {"default": dtype, "vae": torch.float32}
    load = partial(StableDiffusionXLPipeline.from_pretrained, name, dtype=dtypes, add_watermarker=False)
    if not Path(name).is_dir():
        cached, half = {"local_files_only": True}, {"variant": "fp16"}
        for options in (cached, cached | half, half):
            with suppress(OSError, ValueError):
                return load(**options)
    return load()

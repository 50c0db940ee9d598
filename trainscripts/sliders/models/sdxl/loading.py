"""Where SDXL's weights come from: a hub id, a diffusers folder, a single file, or `tiny`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline
from safetensors import SafetensorError

from sliders.config.schema import PretrainedModel
from sliders.models.schedule import EPSILON, V_PREDICTION, NoiseSchedule
from sliders.models.sdxl.model import SDXL
from sliders.models.sdxl.narrow import build_narrow_sdxl
from sliders.models.sdxl.sources import SINGLE_FILES, TINY, WAY_TO_READ, check_source
from sliders.system.errors import InputError, first_line


def load_sdxl(settings: PretrainedModel, dtype: torch.dtype) -> SDXL:
    """Hub id, diffusers folder, single file or `tiny` → SDXL on the CPU, the VAE in float32, the rest in `dtype`.

    Raises InputError where the source is missing, broken or no SDXL base model.
    """
    announced = check_source(settings)
    try:
        if settings.name_or_path == TINY:
            pipe = build_narrow_sdxl().to(dtype)
            pipe.vae.float()
        else:
            with _reading_by(WAY_TO_READ):
                pipe = _load_weights(settings, dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(_cannot_load(settings.name_or_path, error)) from error
    unet = pipe.unet
    if unet.config.in_channels != 4 or unet.config.addition_embed_type != "text_time" or pipe.text_encoder is None:
        raise InputError(
            f"pretrained_model: {settings.name_or_path} is no SDXL base model (an inpainting or refiner one?): use one."
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
    return SDXL(pipe, schedule, settings.name_or_path, settings.clip_skip)


def _sampling_scheduler(scheduler: SchedulerMixin, prediction: str, zero_snr: bool) -> SchedulerMixin:
    """The model's own scheduler, told what a single file's keys or `v_pred` say of the model."""
    said = {"prediction_type": prediction}
    if zero_snr:  # sampling must start where nothing is left of the image
        said |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **said)


def _check_whole(pipe: StableDiffusionXLPipeline, name: str) -> None:
    """diffusers leaves weights that a single file lacks on the meta device, and says nothing."""
    parts = {n: getattr(pipe, n) for n in ("unet", "vae", "text_encoder", "text_encoder_2")}
    missing = [f"{part}.{n}" for part, model in parts.items() for n, p in model.named_parameters() if p.is_meta]
    if missing:
        raise InputError(
            f"pretrained_model.name_or_path: {name} lacks {len(missing)} weights, such as {missing[0]}: choose a complete SDXL checkpoint."
        )


def _v_pred(settings: PretrainedModel, announced: bool) -> bool:
    """An explicit `v_pred: false` for a model that announces v-prediction would train noise into the slider."""
    if settings.v_pred is False and announced:
        raise InputError(
            f"pretrained_model.v_pred is false, but {settings.name_or_path} says that it predicts v: remove the key or set it to true."
        )
    return announced if settings.v_pred is None else settings.v_pred


def _cannot_load(name: str, error: Exception) -> str:
    reason = first_line(error).rstrip(".")
    remedy = (
        "choose a whole SDXL checkpoint or diffusers folder, and see that memory is left"
        if Path(name).exists()
        else "check the hub id, whether the model is gated, and the network"
    )
    return f"pretrained_model.name_or_path: {name} cannot be loaded as SDXL ({reason}): {remedy}."


@contextmanager
def _reading_by(way: str) -> Iterator[None]:
    """Mapped files of SDXL's size have crashed the process on Windows without a word (safetensors issue 693; transformers,
    after its issue 48285, reads them there). diffusers' own `disable_mmap` holds a file's bytes and its tensors at once."""
    as_it_was = safetensors.torch.load_file
    safetensors.torch.load_file = partial(as_it_was, backend=way)
    try:
        yield
    finally:
        safetensors.torch.load_file = as_it_was


def _load_weights(settings: PretrainedModel, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    path = Path(settings.name_or_path)
    if path.suffix.lower() in SINGLE_FILES and path.is_file():
        return _load_single_file(path, settings.config, dtype)
    return _load_folder_or_hub(settings.name_or_path, dtype)


def _load_single_file(path: Path, config: str | None, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """`.ckpt` goes through torch's weights-only unpickler: no code in it is run."""
    vae_config = {} if config is None else {"config": config, "subfolder": "vae"}
    vae = AutoencoderKL.from_single_file(str(path), dtype=torch.float32, **vae_config)
    return StableDiffusionXLPipeline.from_single_file(
        str(path), vae=vae, dtype=dtype, config=config, add_watermarker=False
    )


def _load_folder_or_hub(name: str, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """From the hub, what is in the cache is taken before anything is downloaded, and half-precision files before full ones."""
    dtypes = {"default": dtype, "vae": torch.float32}
    attempts = [{}] if Path(name).is_dir() else [
        {"local_files_only": True},
        {"local_files_only": True, "variant": "fp16"},
        {"variant": "fp16"},
        {},
    ]  # fmt: skip
    for last, options in ((options is attempts[-1], options) for options in attempts):
        try:
            return StableDiffusionXLPipeline.from_pretrained(name, dtype=dtypes, add_watermarker=False, **options)
        except (OSError, ValueError):
            if last:
                raise
    raise AssertionError("unreachable")

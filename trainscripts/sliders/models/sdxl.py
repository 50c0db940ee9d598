"""SDXL (Podell et al. 2023, arXiv:2307.01952): loading it, and its way to encode text and images and to denoise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from sliders.errors import InputError, first_line
from sliders.models.narrow import build_narrow_sdxl
from sliders.models.schedule import EPSILON, V_PREDICTION, NoiseSchedule
from sliders.models.sources import SINGLE_FILES, TINY, WAY_TO_READ, check_source
from sliders.schema import PretrainedModel

LATENT_FACTOR = 8  # px per latent, each way


@dataclass(frozen=True)
class PromptEmbeds:
    """A prompt as the UNet takes it: `tokens` [77, 2048], both encoders side by side; `pooled` [1280]."""

    tokens: Tensor
    pooled: Tensor


class SDXL:
    """A diffusers pipeline with the few calls a trainer needs. Built on the CPU; parts move to a device when asked.

    Attributes: `pipe`, `unet` (frozen), `schedule`, `name` (as the user wrote it), `clip_skip`.
    """

    def __init__(
        self, pipe: StableDiffusionXLPipeline, schedule: NoiseSchedule, name: str, clip_skip: int | None = None
    ):
        self.pipe, self.schedule, self.name, self.clip_skip = pipe, schedule, name, clip_skip
        self.unet = pipe.unet.requires_grad_(False).eval()
        pipe.vae.requires_grad_(False).eval()

    @property
    def scaling_factor(self) -> float:
        return self.pipe.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], device: str) -> dict[str, PromptEmbeds]:
        """Each different prompt, encoded once. The encoders are on `device` only meanwhile."""
        pipe = self.pipe
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            encoder.to(device)
        found = {}
        for prompt in dict.fromkeys(prompts):
            self._warn_if_cut(prompt)
            tokens, _, pooled, _ = pipe.encode_prompt(
                prompt, device=torch.device(device), do_classifier_free_guidance=False, clip_skip=self.clip_skip
            )
            found[prompt] = PromptEmbeds(tokens[0], pooled[0])
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            encoder.to("cpu")
        return found

    def negative(self, prompt: str, embeds: dict[str, PromptEmbeds]) -> PromptEmbeds:
        """What guidance leads away from: `embeds[prompt]`, or zeros for an empty prompt where the model's pipeline says so,
        as SDXL-base's does. Web UIs do the same."""
        found = embeds[prompt]
        if prompt or not self.pipe.config.force_zeros_for_empty_prompt:
            return found
        return PromptEmbeds(torch.zeros_like(found.tokens), torch.zeros_like(found.pooled))

    def _warn_if_cut(self, prompt: str) -> None:
        limit = self.pipe.tokenizer.model_max_length
        length = len(self.pipe.tokenizer(prompt, truncation=False).input_ids)
        if length > limit:
            print(
                f"note: the prompt {prompt[:40]!r}… has {length} tokens, of which the model reads {limit}: shorten it."
            )

    def free_text_encoders(self) -> None:
        self.pipe.text_encoder = self.pipe.text_encoder_2 = None

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """RGB picture of W × H px → mean and standard deviation of its latents' posterior, float32 [4, H/8, W/8], on the CPU.

        Not yet multiplied by the scaling factor. The VAE runs in float32: in float16 SDXL's overflows.
        """
        vae = self.pipe.vae
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, image.height, image.width, 3)
        pixels = pixels.to(vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        return posterior.mean[0].cpu(), posterior.std[0].cpu()

    def denoise(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        """The UNet's prediction, float32 [B, 4, h, w].

        noisy [B, 4, h, w] float32, timesteps [B] int64, tokens [B, 77, 2048], pooled [B, 1280], time_ids [B, 6]
        float32 (original height and width, crop top and left, target height and width).
        """
        return self.unet(
            noisy.to(self.unet.dtype),
            timesteps,
            encoder_hidden_states=tokens,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0].float()


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

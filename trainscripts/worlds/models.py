"""The only place where the worlds touch the model classes of the package: loading, sampling, and the VAE."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import PretrainedModel
from sliders.formats.slider_file import open_slider
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.models.sdxl.model import SDXL
from sliders.report.grids import to_picture
from sliders.sample.preview import sample_grid
from sliders.sample.sampling import Sampling
from torch import Tensor

FAMILY = SDXL_FAMILY
GPU_ROWS = 80  # pictures sampled at once on a GPU
STOCK_ROWS = 16


def load_model(folder: Path, device: str = "cpu") -> SDXL:
    """A world's SDXL in float32, through the ordinary loader."""
    model = FAMILY.load(PretrainedModel(name_or_path=str(folder)), torch.float32)
    if device != "cpu":
        model.pipe.to(device)
    return model


def device_of(model: SDXL) -> torch.device:
    return model.denoiser.device


def attached(slider: Path, model: SDXL) -> AdaptorNetwork:
    """The network of a slider's file, on the model."""
    return open_slider(slider, model.denoiser, FAMILY)


def world_sampling(image_size: int, device: torch.device) -> Sampling:
    """How sliders are judged: 15 steps, guidance 3."""
    sampling = Sampling(image_size, image_size, steps=15, guidance=3.0)
    return replace(sampling, batch_size=GPU_ROWS) if device.type == "cuda" else sampling


def sampled(
    model: SDXL, network: AdaptorNetwork | None, prompts: Sequence[tuple[str, int]], multipliers: Sequence[float],
    sampling: Sampling,
) -> Tensor:  # fmt: skip
    """prompts: (caption, seed) of N pictures → [N, M, 3, H, W] on the model's device. The text encoders must still be loaded."""
    embeds = model.encode_prompts([*(text for text, _ in prompts), ""], str(device_of(model)))
    jobs = [(embeds[text], seed) for text, seed in prompts]
    return sample_grid(model, network, jobs, embeds[""], tuple(multipliers), sampling).to(device_of(model))


@torch.no_grad()
def through_the_vae(model: SDXL, pictures: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1], encoded and decoded: no picture of the model can be better. On the pictures' device."""
    latents = model.vae.encode(pictures.to(model.vae.device) * 2 - 1).latent_dist.mean
    return (model.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).to(pictures.device)


def sample_stock(pipe: StableDiffusionXLPipeline, texts: list[str], seed: int, steps: int, guidance: float) -> Tensor:
    """[N, 3, H, W] fp32 in [0, 1] on the CPU, by diffusers alone. Picture i uses seed + i, independent of the batch size."""
    batches = []
    for start in range(0, len(texts), STOCK_ROWS):
        prompts = texts[start : start + STOCK_ROWS]
        generators = [torch.Generator().manual_seed(seed + start + row) for row in range(len(prompts))]
        result = pipe(
            prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
        )
        batches.append(result.images.float().cpu())
    return torch.cat(batches)


def save_grid(images: Tensor, columns: int, path: Path) -> None:
    """images [N, 3, H, W], in whole rows."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns) if len(row) == columns]
    to_picture(torch.cat(rows, dim=1)).save(path)

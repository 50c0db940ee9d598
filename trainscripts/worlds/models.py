"""The only place where the worlds touch the model classes of the package: loading, sampling, and the VAE."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import PretrainedModel
from sliders.formats.slider_file import open_slider
from sliders.models import FAMILIES
from sliders.models.base import Family, Model
from sliders.models.folders import read_json
from sliders.report.grids import to_picture
from sliders.sample.preview import sample_grid
from sliders.sample.sampling import Sampling
from sliders.system.errors import InputError
from torch import Tensor

FAMILY_OF = {"StableDiffusionXLPipeline": "sdxl", "Flux2KleinPipeline": "flux2"}  # pipeline → a name in models.FAMILIES
GPU_ROWS = 80  # pictures sampled at once on a GPU
STOCK_ROWS = 16


def family_name(folder: Path) -> str:
    """Of the model in a diffusers folder. Raises InputError if there is none, or none of the families that worlds have."""
    name = read_json(folder / "model_index.json", f"--model: {folder}").get("_class_name")
    if name not in FAMILY_OF:
        raise InputError(f"--model: {folder} is a {name}: choose one of {' or '.join(FAMILY_OF)}.")
    return FAMILY_OF[name]


def family_of(model: Model) -> Family:
    return next(family for family in FAMILIES.values() if family.facts is model.facts)


def load_model(folder: Path, device: str = "cpu") -> Model:
    """A world's model in float32, through the ordinary loader."""
    model = FAMILIES[family_name(folder)].load(PretrainedModel(name_or_path=str(folder)), torch.float32)
    if device != "cpu":
        model.pipe.to(device)
    return model


def device_of(model: Model) -> torch.device:
    return model.denoiser.device


def attached(slider: Path, model: Model) -> AdaptorNetwork:
    """The network of a slider's file, on the model."""
    return open_slider(slider, model.denoiser, family_of(model))


def world_sampling(image_size: int, device: torch.device) -> Sampling:
    """How sliders are judged: 15 steps, guidance 3."""
    sampling = Sampling(image_size, image_size, steps=15, guidance=3.0)
    return replace(sampling, batch_size=GPU_ROWS) if device.type == "cuda" else sampling


def sampled(
    model: Model, network: AdaptorNetwork | None, prompts: Sequence[tuple[str, int]], multipliers: Sequence[float],
    sampling: Sampling,
) -> Tensor:  # fmt: skip
    """prompts: (caption, seed) of N pictures → [N, M, 3, H, W] on the model's device. The text encoders must still be loaded."""
    embeds = model.encode_prompts([*(text for text, _ in prompts), ""], str(device_of(model)))
    jobs = [(embeds[text], seed) for text, seed in prompts]
    return sample_grid(model, network, jobs, embeds[""], tuple(multipliers), sampling).to(device_of(model))


@torch.no_grad()
def through_the_vae(model: Model, pictures: Tensor) -> Tensor:
    """[N, 3, H, W] in [0, 1], encoded and decoded: no picture of the model can be better. On the pictures' device."""
    latents = model.vae.encode(pictures.to(model.vae.device) * 2 - 1).latent_dist.mean
    return (model.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).to(pictures.device)


def sample_stock(
    pipe: DiffusionPipeline, texts: list[str], image_size: int, seed: int, steps: int, guidance: float
) -> Tensor:
    """[N, 3, H, W] fp32 in [0, 1] on the CPU, by diffusers alone. Picture i uses seed + i, independent of the batch size."""
    batches = []
    for start in range(0, len(texts), STOCK_ROWS):
        prompts = texts[start : start + STOCK_ROWS]
        generators = [torch.Generator().manual_seed(seed + start + row) for row in range(len(prompts))]
        result = pipe(
            prompt=prompts,
            height=image_size,
            width=image_size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        )
        batches.append(result.images.float().cpu())
    return torch.cat(batches)


def save_grid(images: Tensor, columns: int, path: Path) -> None:
    """images [N, 3, H, W], in whole rows, or in one if they are fewer."""
    columns = min(columns, len(images))
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns) if len(row) == columns]
    to_picture(torch.cat(rows, dim=1)).save(path)

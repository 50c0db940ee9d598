"""Pictures of a slider at several multipliers: the same prompts and seeds in rows, multipliers in columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sliders.models.sdxl import LATENT_FACTOR, SDXL, PromptEmbeds
from sliders.network import AdaptorNetwork

ROWS_AT_ONCE = 16
GAP, FONT_SIZE = 4, 14  # px


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: size in px, steps and guidance of the model's own scheduler."""

    width: int
    height: int
    steps: int
    guidance: float


def preview_multipliers(scales: Sequence[float]) -> tuple[float, ...]:
    """0, the ascending `scales`, and as far beyond the highest again as it lies above the one before."""
    beyond = round(2 * scales[-1] - scales[-2], 6)
    return tuple(sorted({0.0, *scales, beyond}))


@torch.no_grad()
def sample_grid(
    model: SDXL,
    network: AdaptorNetwork | None,
    prompts: Sequence[tuple[PromptEmbeds, int]],
    negative: PromptEmbeds,
    multipliers: Sequence[float],
    sampling: Sampling,
) -> Tensor:
    """Pictures [prompts, multipliers, 3, height, width] in [0, 1], float32 on the CPU.

    `prompts` are (embeddings, seed) pairs; a row's starting noise depends on its seed alone. Rows of all multipliers run
    in one batch, each with its own multiplier. Without a network the base model is sampled.
    """
    jobs = [(embeds, seed, m) for embeds, seed in prompts for m in multipliers]
    found = []
    for start in range(0, len(jobs), ROWS_AT_ONCE):
        chunk = jobs[start : start + ROWS_AT_ONCE]
        if network is not None:
            scales = torch.tensor([m for _, _, m in chunk])
            network.set_multipliers(scales.repeat(2) if sampling.guidance > 1 else scales)  # both halves of guidance
        latents = _sample(model, [embeds for embeds, _, _ in chunk], [seed for _, seed, _ in chunk], negative, sampling)
        found += [_decode(model, row) for row in latents]
    return torch.stack(found).view(len(prompts), len(multipliers), 3, sampling.height, sampling.width)


def _sample(
    model: SDXL, embeds: list[PromptEmbeds], seeds: list[int], negative: PromptEmbeds, sampling: Sampling
) -> Tensor:
    """Latents [B, 4, h, w] of a batch, by diffusers' own pipeline."""
    unet, pipe = model.unet, model.pipe
    shape = (4, sampling.height // LATENT_FACTOR, sampling.width // LATENT_FACTOR)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=torch.stack([e.tokens for e in embeds]),
        pooled_prompt_embeds=torch.stack([e.pooled for e in embeds]),
        negative_prompt_embeds=negative.tokens.expand(len(embeds), -1, -1),
        negative_pooled_prompt_embeds=negative.pooled.expand(len(embeds), -1),
        latents=noise.to(unet.device, unet.dtype),
        height=sampling.height,
        width=sampling.width,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        output_type="latent",
    ).images


def _decode(model: SDXL, latents: Tensor) -> Tensor:
    """latents [4, h, w] → picture [3, H, W] in [0, 1] on the CPU, wherever the VAE lies."""
    vae = model.pipe.vae
    pixels = vae.decode(latents[None].to(vae.device, vae.dtype) / model.scaling_factor, return_dict=False)[0][0]
    return (pixels.float() / 2 + 0.5).clamp(0, 1).cpu()


def to_picture(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] → RGB picture."""
    pixels = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), bytes(pixels.numpy()))


def labelled_grid(pictures: Tensor, row_labels: Sequence[str], column_labels: Sequence[str]) -> Image.Image:
    """pictures [rows, columns, 3, H, W] in [0, 1] → one picture, columns labelled above, rows at the left."""
    rows, columns, _, height, width = pictures.shape
    font = ImageFont.load_default(FONT_SIZE)
    left = max(math.ceil(font.getlength(line)) for label in row_labels for line in _wrap(label)) + 2 * GAP
    top = FONT_SIZE + 2 * GAP
    canvas = Image.new("RGB", (left + columns * (width + GAP), top + rows * (height + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for c, label in enumerate(column_labels):
        draw.text((left + c * (width + GAP) + width / 2, GAP), label, "black", font, anchor="ma")
    for r, label in enumerate(row_labels):
        y = top + r * (height + GAP)
        draw.multiline_text((GAP, y + height / 2), "\n".join(_wrap(label)), "black", font, anchor="lm")
        for c in range(columns):
            canvas.paste(to_picture(pictures[r, c]), (left + c * (width + GAP), y))
    return canvas


def _wrap(text: str, length: int = 22) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines

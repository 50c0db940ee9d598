"""What the frozen denoiser sees in a picture: the outputs of its blocks at a low noise level, pooled."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sliders.models.base import Geometry, Model, PromptEmbeds
from sliders.models.layers import architecture_of

TIMESTEP = 50  # of 1000: the picture is nearly free of noise
CELLS = 2  # along each side: averages over quarters of the picture tell left from right
PIXELS_AT_ONCE = 1024**2  # in a batch, so that it fits wherever one picture can be sampled with guidance
MAX_ROWS = 16


@torch.no_grad()
def features(model: Model, pictures: Iterable[Image.Image], prompt: PromptEmbeds) -> Tensor:
    """RGB pictures of one size → [N, 1 + cells, C] float64 on the CPU. No adaptor may be active, and the VAE is on the denoiser's device.

    Activations of diffusion models describe pictures well (Baranchuk et al. 2022, arXiv:2112.03126). All pictures get
    the same noise and prompt, so that two pictures differ in their features only where they differ themselves.
    """
    found = []
    with blocks_of(model.denoiser) as outputs, torch.compiler.set_stance("force_eager"):
        for latents, size in _latents(model, pictures):
            outputs.clear()
            _denoise(model, latents, size, prompt)
            image_of = architecture_of(model.denoiser).image_of
            found.append(torch.cat([_pooled(image_of(output, latents.shape[2:])) for output in outputs], dim=2))
    return torch.cat(found)


@contextmanager
def blocks_of(denoiser: nn.Module) -> Iterator[list]:
    """Yields a list to which each block of a call appends its output."""
    outputs: list = []

    def note(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        outputs.append(output)

    hooks = [block.register_forward_hook(note) for block in architecture_of(denoiser).blocks(denoiser)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _latents(model: Model, pictures: Iterable[Image.Image]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Batches of latents [B, c, h, w] float32 on the denoiser's device, with the pictures' (height, width) in px."""
    rest = iter(pictures)
    first = next(rest)
    rows = min(MAX_ROWS, max(1, PIXELS_AT_ONCE // (first.width * first.height)))
    waiting = chain([first], rest)
    while batch := list(islice(waiting, rows)):
        means = torch.stack([model.encode_image(picture)[0] for picture in batch])
        yield model.normalise(means).to(model.denoiser.device), (first.height, first.width)


def _denoise(model: Model, latents: Tensor, size: tuple[int, int], prompt: PromptEmbeds) -> None:
    count, device = len(latents), latents.device
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0)).to(device).expand_as(latents)
    timesteps = torch.full((count,), TIMESTEP, device=device)
    noisy = model.objective.to(device).add_noise(latents, noise, timesteps)
    conditioning = model.conditioning([prompt] * count, [Geometry(size, (0, 0), size)] * count)
    model.denoise(noisy, timesteps, {key: value.to(device) for key, value in conditioning.items()})


def _pooled(output: Tensor) -> Tensor:
    """[B, C, h, w] → [B, 1 + cells, C] float64 on the CPU: the mean, then by how much each cell's mean differs from it."""
    cells = F.adaptive_avg_pool2d(output.float(), CELLS).flatten(2).mT.double().cpu()
    mean = cells.mean(1, keepdim=True)
    return torch.cat([mean, cells - mean], dim=1)

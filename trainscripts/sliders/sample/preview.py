"""Previews of a slider: a grid of pictures with one prompt and seed per row and one multiplier per column."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sliders.adaptors.network import AdaptorNetwork
from sliders.models.base import Model, PromptEmbeds
from sliders.sample.sampling import Row, Sampling, rows_within, sample


def preview_multipliers(scales: Sequence[float]) -> tuple[float, ...]:
    """0, the scales, and one multiplier beyond: the highest scale plus its distance to the second highest.

    scales: ascending, at least two.
    """
    beyond = round(2 * scales[-1] - scales[-2], 6)
    return tuple(sorted({0.0, *scales, beyond}))


def sample_grid(
    model: Model,
    network: AdaptorNetwork | None,
    prompts: Sequence[tuple[PromptEmbeds, int]],
    negative: PromptEmbeds,
    multipliers: Sequence[float],
    sampling: Sampling,
) -> Tensor:
    """Pictures [prompts, multipliers, 3, H, W] in [0, 1], float32 on the CPU.

    prompts: (embeddings, seed) pairs. network: None samples the base model. Raises torch.OutOfMemoryError.
    """
    networks = [] if network is None else [network]
    rows = [Row(embeds, seed, (m,)) for embeds, seed in prompts for m in multipliers]
    pictures = torch.stack(list(sample(model, networks, rows, negative, sampling)))
    return pictures.view(len(prompts), len(multipliers), *pictures.shape[1:])


def preview_sampling(
    width: int, height: int, steps: int, guidance: float, decode_on_cpu: bool = True, cuda_graph: bool = True
) -> Sampling:
    """Sampling in batches that fit beside training: at 1024 px one picture, which with guidance is two UNet rows."""
    rows = rows_within(1024**2, width, height)
    return Sampling(width, height, steps, guidance, batch_size=rows, cuda_graph=cuda_graph, decode_on_cpu=decode_on_cpu)


@contextmanager
def sampling_from(model: Model, network: AdaptorNetwork, device: str) -> Iterator[None]:
    """Prepares a model in training for sampling: VAE on `device`, modules in evaluation mode. Restores everything on exit.

    Sampling uses its own random generators, so torch's random state is not affected.
    """
    modules = [*model.unet.modules(), *network.modules()]
    scheduler, multipliers = model.scheduler, network.multipliers
    training = [module.training for module in modules]
    model.scheduler = type(scheduler).from_config(scheduler.config)
    try:
        for module in modules:
            module.training = False
        with model.vae_on(device):
            yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
        model.scheduler = scheduler
        network.set_multipliers(multipliers)

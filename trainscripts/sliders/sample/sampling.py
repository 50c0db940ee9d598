"""Pictures by diffusers' own pipeline, each row of a batch with its own prompt, seed and multipliers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import diffusers
import torch
from torch import Tensor

from sliders.adaptors.network import AdaptorNetwork
from sliders.config.schema import SAMPLERS
from sliders.models.base import AfterStep, Model, PromptEmbeds

MAX_ROWS, PIXELS_AT_ONCE = 16, 4 * 1024**2  # what a card of 24 GB holds, guidance included;
SUCH_A_CARD = 22 * 2**30  # bytes, at least

OF_THE_MODEL = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type", "timestep_spacing", "steps_offset",
)  # fmt: skip


def pixels_at_once(device: str) -> int:
    """As many as a GPU's memory promises; asking for too many is slow where a driver takes main memory instead."""
    if not device.startswith("cuda"):
        return PIXELS_AT_ONCE
    _, total = torch.cuda.mem_get_info(device)
    return int(PIXELS_AT_ONCE * min(1, total / SUCH_A_CARD))


def rows_within(pixels: int, width: int, height: int) -> int:
    """How many pictures of width × height px to make at once so that together they have at most `pixels`."""
    return min(MAX_ROWS, max(1, pixels // (width * height)))


@dataclass(frozen=True)
class Sampling:
    """How pictures are made. `from_step`: the slider joins after that many steps (Gandikota et al. 2024, section 4.4),
    so that what the first steps lay out stays. `sampler` None: the model's own scheduler."""

    width: int  # px
    height: int
    steps: int
    guidance: float
    sampler: str | None = None
    from_step: int = 0
    batch_size: int = MAX_ROWS  # rows at once
    decode_on_cpu: bool = True  # where the device has no memory for the VAE; otherwise that raises


@dataclass(frozen=True)
class Row:
    """One picture to make. Its noise depends on the seed alone."""

    prompt: PromptEmbeds
    seed: int
    multipliers: tuple[float, ...]  # one for each network


def use_sampler(model: Model, name: str | None) -> None:
    """Put the scheduler that `name` stands for into the model's pipeline. Only how the model noises, what it predicts and
    how its timesteps are spread come from its own scheduler, whose other options would make the name a lie."""
    if name is None:
        return
    cls, options, _ = SAMPLERS[name]
    own = {key: value for key, value in model.scheduler.config.items() if key in OF_THE_MODEL}
    model.scheduler = getattr(diffusers, cls).from_config(own, **options)


@torch.no_grad()
def sample(
    model: Model, networks: Sequence[AdaptorNetwork], rows: Sequence[Row], negative: PromptEmbeds, sampling: Sampling
) -> Iterator[Tensor]:
    """A picture [3, height, width] in [0, 1], float32 on the CPU, for each row in turn.

    Rows run in batches of `sampling.batch_size`, whatever prompts, seeds and multipliers they have, and of half as many
    from then on where the device has no memory for them. The multipliers of the last batch stay set; the networks must be
    hung on `model.unet`. Raises torch.OutOfMemoryError where not even one row fits.
    """
    use_sampler(model, sampling.sampler)
    at_once, start = sampling.batch_size, 0
    while start < len(rows):
        batch = rows[start : start + at_once]
        found = _sample_if_it_fits(model, networks, batch, negative, sampling)
        if found is None:
            at_once = len(batch) // 2
            torch.cuda.empty_cache()  # its pieces have the sizes that the larger batch needed
            continue
        start += len(batch)
        for latents in found:
            yield _decode(model, latents, sampling.decode_on_cpu)


def _sample_if_it_fits(
    model: Model, networks: Sequence[AdaptorNetwork], rows: Sequence[Row], negative: PromptEmbeds, sampling: Sampling
) -> Tensor | None:
    """None for several rows that do not fit; when it returns, nothing holds their tensors any more."""
    try:
        return _sample_latents(model, networks, rows, negative, sampling)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    return None


@torch.no_grad()
def _sample_latents(
    model: Model, networks: Sequence[AdaptorNetwork], rows: Sequence[Row], negative: PromptEmbeds, sampling: Sampling
) -> Tensor:
    """Latents [B, c, h, w] of one batch."""
    facts = model.facts
    sides = (side // facts.latent_factor for side in (sampling.height, sampling.width))
    shape = (facts.latent_channels, *sides)
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]  # of the CPU: the same noise on every device
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    after_step = _joining(networks, rows, sampling)
    prompts = [row.prompt for row in rows]
    return model.sample_latents(prompts, negative, noise, generators, sampling.steps, sampling.guidance, after_step)


def _joining(networks: Sequence[AdaptorNetwork], rows: Sequence[Row], sampling: Sampling) -> AfterStep:
    """Sets the networks' multipliers, now or, by the returned callback, after step `from_step`."""
    halves = 2 if sampling.guidance > 1 else 1  # with guidance each row is there twice, first without its prompt

    def join() -> None:
        for i, network in enumerate(networks):
            network.set_multipliers(torch.tensor([row.multipliers[i] for row in rows]).repeat(halves))

    def after_step(done: int) -> None:
        if done == sampling.from_step:
            join()

    if sampling.from_step:
        for network in networks:
            network.set_multipliers(None)
    else:
        join()
    return after_step


def _decode(model: Model, latents: Tensor, decode_on_cpu: bool) -> Tensor:
    """latents [c, h, w] -> picture [3, H, W] in [0, 1] on the CPU, wherever the VAE is."""
    try:
        return model.decode(latents).cpu()
    except torch.OutOfMemoryError:
        if not decode_on_cpu:
            raise
    model.vae.to("cpu")
    return model.decode(latents)

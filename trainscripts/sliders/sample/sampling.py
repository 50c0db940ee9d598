"""Samples pictures through diffusers' pipeline. Each row of a batch has its own prompt, seed and multipliers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.patches import unpatch
from sliders.models.base import AfterStep, Model, PromptEmbeds
from sliders.sample.captured import CapturedDenoiser

MAX_ROWS = 16
PIXELS_PER_BATCH = 4 * 1024**2  # what a 24 GB card can sample at once, with guidance
CARD_24_GB = 22 * 2**30  # bytes; such cards report a little less than 24 GiB


def pixels_per_batch(device: str) -> int:
    """How many pixels to sample at once on `device`, in proportion to a GPU's total memory.

    A batch that does not fit is halved, but Windows drivers (not verified on Windows) use main memory instead, which is slow.
    """
    if not device.startswith("cuda"):
        return PIXELS_PER_BATCH
    _, total = torch.cuda.mem_get_info(device)
    return int(PIXELS_PER_BATCH * min(1, total / CARD_24_GB))


def can_capture(denoiser: nn.Module) -> bool:
    """Whether CUDA graphs can replay calls of `denoiser`."""
    return denoiser.device.type == "cuda"


def rows_within(pixels: int, width: int, height: int) -> int:
    """How many pictures of width × height px make up at most `pixels`: at least 1, at most MAX_ROWS."""
    return min(MAX_ROWS, max(1, pixels // (width * height)))


@dataclass(frozen=True)
class Sampling:
    """How pictures are made."""

    width: int  # px
    height: int
    steps: int
    guidance: float
    sampler: str | None = None  # a key of SAMPLERS; None: the model's own scheduler
    # steps before the slider joins and a row's own prompt is read; keeps the layout (Gandikota et al. 2024, section 4.4)
    from_step: int = 0
    batch_size: int = MAX_ROWS  # pictures
    cuda_graph: bool = True  # whether a GPU may replay the denoiser as a CUDA graph
    decode_on_cpu: bool = True  # if the device has no memory left for the VAE; otherwise sampling raises


@dataclass(frozen=True)
class Row:
    """One picture to make. Its noise depends only on the seed."""

    prompt: PromptEmbeds
    seed: int
    multipliers: tuple[float, ...]  # one per network
    before: PromptEmbeds | None = None  # the prompt of the steps before `from_step`; None: the same


@torch.no_grad()
def sample(
    model: Model, networks: Sequence[AdaptorNetwork], rows: Sequence[Row], negative: PromptEmbeds, sampling: Sampling
) -> Iterator[Tensor]:
    """Yields one picture per row, in order: [3, H, W] in [0, 1], float32 on the CPU.

    Batches have `sampling.batch_size` rows. A batch that does not fit in memory is halved, and so are those after it. The
    networks must be attached to `model.denoiser`; they keep the multipliers of the last batch. Raises torch.OutOfMemoryError
    if a single row does not fit.
    """
    if sampling.sampler:
        model.use_sampler(sampling.sampler)
    at_once, start = sampling.batch_size, 0
    black: list[Row] = []
    with CapturedDenoiser(model.denoiser, networks, sampling.cuda_graph and can_capture(model.denoiser)) as graphs:
        while start < len(rows):
            batch = rows[start : start + at_once]
            graphs.expect((len(rows) - start) // len(batch) * sampling.steps)
            found = _sample_if_it_fits(model, networks, batch, negative, sampling)
            if found is None:
                at_once = len(batch) // 2
                torch.cuda.empty_cache()  # cached blocks have the sizes of the larger batch
                continue
            start += len(batch)
            black += [row for row, latents in zip(batch, found, strict=True) if not latents.isfinite().all()]
            for latents in found:
                yield _decode(model, latents, graphs, sampling.decode_on_cpu)
    if black:
        at = ", ".join(dict.fromkeys(f"{m:g}" for row in black for m in row.multipliers))
        tqdm.write(
            f"warning: {len(black)} of {len(rows)} pictures, at {at}, are black, because the model's output is not finite: use smaller "
            "multipliers, or precision bfloat16 or float32."
        )


def _sample_if_it_fits(
    model: Model, networks: Sequence[AdaptorNetwork], rows: Sequence[Row], negative: PromptEmbeds, sampling: Sampling
) -> Tensor | None:
    """None if several rows do not fit. A function of its own: returning from it frees the tensors that the error refers to."""
    try:
        return _sample_latents(model, networks, rows, negative, sampling)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    return None


def _sample_latents(
    model: Model, networks: Sequence[AdaptorNetwork], rows: Sequence[Row], negative: PromptEmbeds, sampling: Sampling
) -> Tensor:
    """Latents [B, c, h, w] of one batch."""
    shape = model.facts.latent_shape(sampling.height, sampling.width)
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]  # on the CPU: the same noise on every device
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    after_step = _apply_multipliers(model, networks, rows, sampling)
    prompts = [row.before or row.prompt for row in rows] if sampling.from_step else [row.prompt for row in rows]
    return model.sample_latents(prompts, negative, noise, generators, sampling.steps, sampling.guidance, after_step)


def _apply_multipliers(
    model: Model, networks: Sequence[AdaptorNetwork], rows: Sequence[Row], sampling: Sampling
) -> AfterStep:
    """Sets the networks' multipliers now, or, through the returned callback, after step `from_step`, with the rows' own prompts."""
    parts = model.rows_at_once(sampling.guidance)

    def join() -> None:
        for i, network in enumerate(networks):
            network.set_multipliers(torch.tensor([row.multipliers[i] for row in rows]).repeat(parts))

    def after_step(done: int) -> list[PromptEmbeds] | None:
        if done != sampling.from_step:
            return None
        join()
        return [row.prompt for row in rows] if any(row.before for row in rows) else None

    if sampling.from_step:
        for network in networks:
            network.set_multipliers(None)
    else:
        join()
    return after_step


def _decode(model: Model, latents: Tensor, graphs: CapturedDenoiser, decode_on_cpu: bool) -> Tensor:
    """Latents [c, h, w] → picture [3, H, W] in [0, 1] on the CPU. The graphs make room for it if necessary."""
    try:
        return model.decode(latents).cpu()
    except torch.OutOfMemoryError:
        if not (graphs.captured or decode_on_cpu):
            raise
    if graphs.captured:
        graphs.forget()
        return _decode(model, latents, graphs, decode_on_cpu)
    unpatch(model.vae)
    model.vae.to("cpu")
    return model.decode(latents)

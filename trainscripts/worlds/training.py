"""Trains a world's narrow models from random weights: what does not depend on what the world shows."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging as diffusers_logging
from sliders.compute.device import place
from sliders.models.sdxl.narrow import NarrowSDXL, build_narrow_sdxl
from torch import Tensor, nn

CAPTION_DROPOUT = 0.1  # share of rows with an empty prompt, for classifier-free guidance
WARMUP_STEPS = 200
REPORTS = 10  # lines printed by a run


class Pace(Protocol):
    """How long a run is."""

    def progress(self, step: int, seconds: float) -> float:
        """0 at the start; from 1 on the run is over."""
        ...

    def newest(self, step: int) -> float:
        """Weight of the newest parameters in their moving average."""
        ...


class Steps:
    """A number of steps. The average's time constant is a tenth of them."""

    def __init__(self, steps: int):
        self.steps = steps

    def progress(self, step: int, seconds: float) -> float:
        return step / self.steps

    def newest(self, step: int) -> float:
        return min(1.0, 1 / (0.1 * self.steps))


class Seconds:
    """A time on the clock. The average widens with the run (Karras et al. 2024, arXiv:2312.02696, eq. 123), to about its last 5 %."""

    POWER = 17.0

    def __init__(self, seconds: float):
        self.seconds = max(seconds, 1e-9)  # none or fewer may be left, and the run is over at once

    def progress(self, step: int, seconds: float) -> float:
        if torch.cuda.is_available() and step % 10 == 0:
            torch.cuda.synchronize()  # or the clock would run ahead of the GPU's work
        return seconds / self.seconds

    def newest(self, step: int) -> float:
        return 1 - (1 - 1 / (step + 1)) ** self.POWER


def build_pipeline(
    widths: NarrowSDXL, words: Sequence[str], seed: int, device: torch.device
) -> StableDiffusionXLPipeline:
    """With random weights, on `device`. Prints the number of parameters."""
    torch.manual_seed(seed)
    diffusers_logging.disable_progress_bar()
    pipe = build_narrow_sdxl(widths, words, seed).to(device)
    # SDXL's pipeline replaces a missing negative prompt with zeros, but this model learns the empty prompt.
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    print_sizes(pipe)
    return pipe


def parts(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks of a pipeline."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def print_sizes(pipe: DiffusionPipeline) -> None:
    for name, part in parts(pipe).items():
        print(f"{name}: {sum(parameter.numel() for parameter in part.parameters()):,} parameters", flush=True)


def fit(name: str, parameters: Iterable[Tensor], loss: Callable[[], Tensor], pace: Pace, peak_lr: float) -> int:
    """Minimizes a loss that draws its own batches, by AdamW with warm-up and cosine decay. Returns the number of steps.

    Leaves the parameters at their moving average. Raises FloatingPointError if the loss is not finite.
    """
    parameters = list(parameters)
    device = parameters[0].device
    average = [parameter.detach().clone() for parameter in parameters]
    lr = torch.tensor(0.0, device=device)  # a tensor, so that a captured step sees it change
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True, capturable=device.type == "cuda")

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return value.detach()

    started, losses, reported = time.time(), [], 0
    run = captured(step) if device.type == "cuda" else step
    for index in count():
        progress = pace.progress(index, time.time() - started)
        if losses and progress >= (reported + 1) / REPORTS:
            reported = int(progress * REPORTS)
            mean = torch.stack(losses).mean().item()
            print(f"{name}: step {index}, loss {mean:.5f}, {time.time() - started:.0f} s", flush=True)
            losses.clear()
            if not math.isfinite(mean):
                raise FloatingPointError(f"{name}: the loss is {mean} at step {index}: lower peak_lr.")
        if progress >= 1:
            break
        warmup = min(1.0, (index + 1) / WARMUP_STEPS)
        lr.fill_(peak_lr * warmup * (0.5 + 0.5 * math.cos(math.pi * progress)))
        losses.append(run().clone())
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], pace.newest(index))
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    return index


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as a CUDA graph: a narrow network's kernels take longer to launch one by one than to run."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()

    def replay() -> Tensor:
        graph.replay()
        return value

    return replay


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU. The cache is off, because cached casts would outlive the step that a CUDA graph captures."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


@torch.no_grad()
def encode_pictures(
    pipe: StableDiffusionXLPipeline,
    draw: Callable[[], tuple[Tensor, Tensor]],
    more: Callable[[int], bool],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Encodes batches and sets the VAE's scaling factor, so that latents have unit deviation.

    draw: pictures [B, 3, H, W] in [0, 1] and the index of each caption [B]. more: whether to go on after so many batches.
    Returns moments [count, 8, h, w] in `dtype` and caption indices [count] int64.
    """
    vae = pipe.vae
    moments, prompts = [], []
    while more(len(moments)):
        pictures, captions = draw()
        with autocast(vae.device):
            moments.append(vae.encode(pictures * 2 - 1).latent_dist.parameters.to(dtype))
        prompts.append(captions)
    deviations = [DiagonalGaussianDistribution(batch.float()).sample().std() for batch in moments]
    vae.register_to_config(scaling_factor=1 / torch.stack(deviations).mean().item())
    encoded = torch.cat(prompts)
    print(f"vae: {len(encoded)} scenes encoded, scaling factor {vae.config.scaling_factor:.4f}", flush=True)
    return torch.cat(moments), encoded


def tokenize(tokenizer, captions: list[str]) -> Tensor:
    """[len(captions), 77] int64, padded as by the pipeline."""
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def encode_prompts(pipe: StableDiffusionXLPipeline, input_ids: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Like pipe.encode_prompt, with gradients: embeddings [B, 77, C] and pooled embeddings of encoder 2 [B, D]."""
    first = pipe.text_encoder(input_ids[0], output_hidden_states=True)
    second = pipe.text_encoder_2(input_ids[1], output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def time_ids(image_size: int, rows: int, device: torch.device) -> Tensor:
    """[rows, 6] fp32: SDXL's original size, crop and target size."""
    size = (image_size, image_size)
    return torch.tensor([[*size, 0, 0, *size]], device=device, dtype=torch.float32).repeat(rows, 1)


def save(pipe: DiffusionPipeline, out: Path) -> None:
    """Writes a diffusers folder: fp16 weights, loaded as fp32 unless the caller specifies another dtype."""
    for part in parts(pipe).values():
        place(part, "cpu", torch.float16)
    pipe.save_pretrained(out)
    for name in (name for name in parts(pipe) if name.startswith("text_encoder")):
        # transformers loads the dtype in its config, diffusers fp32: one pipeline would get both.
        config_file = out / name / "config.json"
        config = json.loads(config_file.read_text()) | {"dtype": "float32"}
        config_file.write_text(json.dumps(config, indent=2) + "\n")
    for name in (name for name in pipe.components if name.startswith("tokenizer")):
        # vocab.json and merges.txt, for programs that do not read tokenizer.json
        getattr(pipe, name).backend_tokenizer.model.save(str(out / name))

"""The loop: batch → loss → step → save, and what surrounds it."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sliders.attention import set_attention
from sliders.batch import Batch, BatchMaker
from sliders.cards import write_card
from sliders.checkpoint import save_slider, slider_metadata, slider_tensors
from sliders.compilation import compile_blocks
from sliders.dataset import ScaleFolders
from sliders.denoiser import AdaptedDenoiser
from sliders.errors import InputError
from sliders.files import written_whole
from sliders.grids import labelled_grid
from sliders.latents import LatentCache, views
from sliders.losses import LOSSES
from sliders.models.sdxl import SDXL, load_sdxl
from sliders.network import AdaptorNetwork
from sliders.optim import build_lr_scheduler, build_optimizer
from sliders.preview import preview_multipliers, preview_sampling, sample_grid, sampling_from
from sliders.samplers import StepDraw, StepSampler
from sliders.schema import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteError(InputError):
    """Training ran into infinities or NaN."""


@dataclass(frozen=True)
class StepResult:
    loss: float
    grad_norm: float
    lr: float
    scales: tuple[float, float]  # of the first pair


@dataclass(frozen=True)
class Report:
    """How a run went."""

    path: Path
    losses: tuple[float, ...]
    seconds_per_step: float  # median, so that compiling and warming up do not count
    peak_memory: int | None  # bytes on the GPU, encoding included


class Trainer:
    """One slider in the making. `Trainer(settings, data).run()` trains and saves it.

    `model`: an SDXL on the CPU in place of the one that the settings name.
    """

    def __init__(self, settings: Settings, data: ScaleFolders, model: SDXL | None = None):
        self.settings, self.data = settings, data
        self.device = torch_device(settings.device)
        self.started = training_time()
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
        self.model = model or load_sdxl(settings.pretrained_model, DTYPES[settings.train.precision])
        self.make_batch = self._encode()
        self.network = self._adapt()
        train = settings.train
        self.optimizer = build_optimizer(train, self.network.parameters())
        self.lr_scheduler = build_lr_scheduler(train, self.optimizer)
        self.loss = LOSSES[train.loss]
        self.denoiser = AdaptedDenoiser(self.model, self.network)
        self.draw = StepSampler(
            seed=train.seed, prompts=settings.prompts, num_names=len(data.names), num_scales=len(data.scales),
            max_denoising_steps=train.max_denoising_steps, shape_of=data.fitted_size,
        )  # fmt: skip

    def _encode(self) -> BatchMaker:
        """Images and prompts are encoded once, then VAE and text encoders leave the device."""
        settings, device, model = self.settings, self.device, self.model
        cache = LatentCache(model, self.data, views(settings.prompts), device)
        prompts = [p for s in settings.prompts for p in (s.neutral, s.positive)]
        embeds = model.encode_prompts([*prompts, *settings.preview.prompts, ""], device)
        model.free_text_encoders()
        model.schedule = model.schedule.to(device)
        return BatchMaker(cache, settings.prompts, embeds, self.data.scales, device)

    def _adapt(self) -> AdaptorNetwork:
        other, unet = self.settings.other, self.model.unet
        unet.to(self.device)
        set_attention(unet, other)
        if other.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        network = AdaptorNetwork(unet, self.settings.network, seed=self.settings.train.seed)
        if other.torch_compile:
            compile_blocks(unet)
        return network

    def forward(self, batch: Batch) -> Tensor:
        """batch → loss of the step: a pair's is the sum of its rows', a step's the mean of its pairs'. float32, 0-dim."""
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.settings.other.torch_amp):
            rows = self.loss(self.denoiser, batch)
        return rows.view(-1, 2).sum(1).mean()

    def step(self, step: int) -> StepResult:
        """One optimizer step. Raises NonFiniteError, with the adaptor as it was before, if the gradient is not finite."""
        draw, train = self.draw(step), self.settings.train
        loss = self.forward(self.make_batch(draw))
        loss.backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in self.network.parameters())
        # The step's only wait for the device: both numbers must be known before the optimizer may run.
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise NonFiniteError(self._non_finite(step, draw))
        if train.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), train.max_grad_norm, norm)
        lr = self.lr_scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        first = draw.pairs[0]
        return StepResult(loss_value, norm_value, lr, (self.data.scales[first.low], self.data.scales[first.high]))

    def _non_finite(self, step: int, draw: StepDraw) -> str:
        pairs = "; ".join(
            f"{self.data.names[p.name]} at {self.data.scales[p.low]:g} and {self.data.scales[p.high]:g}, timestep {p.timestep}"
            for p in draw.pairs
        )
        return (
            f"train: loss or gradient is not finite at step {step + 1} ({pairs}): lower train.lr, set train.max_grad_norm: 1.0, "
            "or use precision float32. What was saved before is whole."
        )

    def run(self) -> Report:
        """Train for `train.iterations` steps, saving every `save.per_steps` and at the end."""
        train = self.settings.train
        losses, seconds = [], []
        with trackers(self.settings) as tracker, tqdm(total=train.iterations, desc="training", unit="step") as bar:
            for step in range(train.iterations):
                began = time.perf_counter()
                result = self.step(step)
                seconds.append(time.perf_counter() - began)
                losses.append(result.loss)
                tracker.log({"loss": result.loss, "lr": result.lr, "grad_norm": result.grad_norm}, step=step + 1)
                low, high = result.scales
                bar.set_postfix_str(f"loss {result.loss:.4f} lr {result.lr:.2e} scales {low:g} {high:g}", refresh=False)
                bar.update()
                done = step + 1
                if done % self.settings.save.per_steps == 0 and done < train.iterations:
                    self.save(f"{done}steps", done)
                if self._previews_at(done):
                    picture = self.preview(self.settings.run_dir / f"{self.settings.stem}_{done}steps.preview.png")
                    log_picture(tracker, picture, done)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else None
        path = self.save("last", train.iterations)
        if self.settings.preview.prompts:
            self.preview(path.with_suffix(".preview.png"))
        return Report(path, tuple(losses), sorted(seconds)[len(seconds) // 2], peak)

    def save(self, suffix: str, steps: int) -> Path:
        settings = self.settings
        stem = f"{settings.stem}_{suffix}"
        path = settings.run_dir / f"{stem}.safetensors"
        metadata = slider_metadata(
            settings,
            self.data,
            stem=stem,
            steps=steps,
            started=self.started,
            prediction=self.model.schedule.prediction_type,
        )
        save_slider(path, slider_tensors(self.network, DTYPES[settings.save.precision]), metadata)
        if settings.save.sidecars:
            write_card(path, settings)
        return path

    def _previews_at(self, done: int) -> bool:
        """Every `preview.every` steps, and beside each slider; the last one's picture is made when all is done."""
        settings, every = self.settings, self.settings.preview.every
        if not settings.preview.prompts or done == settings.train.iterations:
            return False
        return (every > 0 and done % every == 0) or (settings.save.sidecars and done % settings.save.per_steps == 0)

    def preview(self, path: Path) -> Image.Image:
        """Write the picture of `preview.prompts` × multipliers, at the size and guidance of the first prompt set."""
        settings, first = self.settings.preview, self.settings.prompts[0]
        width, height = self.data.fitted_size(0, first.resolution)
        multipliers = settings.multipliers or preview_multipliers(self.data.scales)
        embeds = self.make_batch.prompt_embeds
        jobs = [(embeds[prompt], settings.seed + row) for row, prompt in enumerate(settings.prompts)]
        sampling = preview_sampling(width, height, settings.steps, first.guidance_scale)
        with sampling_from(self.model, self.network, self.device):
            pictures = sample_grid(self.model, self.network, jobs, embeds[""], multipliers, sampling)
        picture = labelled_grid(pictures, settings.prompts, [f"{m:g}" for m in multipliers])
        with written_whole(path) as temporary:
            picture.save(temporary, format="PNG")
        return picture


def torch_device(name: str) -> str:
    """`--device` → what torch calls it; a machine without any GPU trains on its CPU. Raises InputError for what is not there."""
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device: mps is not available on this machine: use cpu or a CUDA index.")
    if not name.isdigit():
        return name
    count = torch.cuda.device_count()
    if count == 0:
        return "cpu"
    if int(name) >= count:
        raise InputError(
            f"--device: {name} is not there, this machine has {count} GPU(s): use 0{f' to {count - 1}' if count > 1 else ''}."
        )
    return f"cuda:{name}"


def training_time() -> float:
    """Seconds since 1970 that a file says it was trained at; SOURCE_DATE_EPOCH, where set, makes files reproducible."""
    return float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))


@contextmanager
def trackers(settings: Settings) -> Iterator[Accelerator]:
    """What logs to TensorBoard in the run's folder, and to wandb if asked for."""
    kinds = ["tensorboard"] + (["wandb"] if settings.logging.use_wandb else [])
    accelerator = Accelerator(log_with=kinds, project_dir=settings.run_dir, cpu=not settings.device.isdigit())
    accelerator.init_trackers(
        "logs", init_kwargs={"wandb": {"name": settings.stem}} if settings.logging.use_wandb else {}
    )
    try:
        yield accelerator
    finally:
        accelerator.end_training()


def log_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"preview": np.asarray(picture)[None]}, step=step, **layout)

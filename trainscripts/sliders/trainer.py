"""The loop: batch → loss → step → save, and what surrounds it."""

import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from sliders.attention import set_attention
from sliders.batch import Batch, BatchMaker
from sliders.cards import write_card
from sliders.checkpoint import save_slider, slider_metadata, slider_tensors
from sliders.compilation import compile_unet
from sliders.dataset import ScaleFolders
from sliders.denoiser import AdaptedDenoiser
from sliders.errors import InputError
from sliders.files import written_whole
from sliders.flat import FlatWeights
from sliders.fusion import can_fuse, fuse_blocks
from sliders.gradients import CapturedGradients, Gradients
from sliders.grids import labelled_grid
from sliders.journal import Journal, StepResult, log_picture, trackers
from sliders.latents import LatentCache, views
from sliders.losses import LOSSES
from sliders.models.sdxl import SDXL, load_sdxl
from sliders.network import AdaptorNetwork
from sliders.optim import UpdateGuard, build_lr_scheduler, build_optimizer
from sliders.preview import preview_multipliers, preview_sampling, sample_grid, sampling_from
from sliders.quantization import quantize
from sliders.samplers import StepDraw, StepSampler
from sliders.schema import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteError(InputError):
    """Training ran into infinities or NaN."""


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
            torch.zeros(0, device=self.device)  # CUDA starts with its first tensor, and knows no statistics before
            torch.cuda.reset_peak_memory_stats(self.device)
        self.model = model or load_sdxl(settings.pretrained_model, DTYPES[settings.train.precision])
        self.make_batch = self._encode()
        self.network = self._adapt()
        train = settings.train
        self.weights = FlatWeights(self.network, self.model.unet.dtype)
        self.optimizer = build_optimizer(train, [self.weights.master])
        self.lr_scheduler = build_lr_scheduler(train, self.optimizer)
        self.guard = UpdateGuard(self.optimizer, self.device)
        self.loss = LOSSES[train.loss]
        self.denoiser = AdaptedDenoiser(self.model, self.network)
        self.gradients = Gradients(self.forward, self.weights, train.max_grad_norm)
        if self.device.startswith("cuda") and settings.other.cuda_graph != "off":
            self.gradients = CapturedGradients(self.gradients)
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
        unet.to(self.device, memory_format=torch.channels_last)
        quantize(unet, self.settings.pretrained_model.quantize)
        set_attention(unet, other)
        if other.torch_compile == "off" and can_fuse(self.device):
            fuse_blocks(unet)
        if other.gradient_checkpointing:
            # Nothing random runs inside; keeping the generator's state would make the GPU wait.
            unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
        network = AdaptorNetwork(unet, self.settings.network, seed=self.settings.train.seed)
        compile_unet(unet, other.torch_compile)
        return network

    def forward(self, batch: Batch) -> Tensor:
        """batch → loss of the step: a pair's is the sum of its rows', a step's the mean of its pairs'. float32, 0-dim."""
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.settings.other.torch_amp):
            rows = self.loss(self.denoiser, batch)
        return rows.view(-1, 2).sum(1).mean()

    def step(self, step: int) -> StepResult:
        """One optimizer step. A gradient that is not finite changes nothing; `read` then raises NonFiniteError, here
        already where the optimizer has to know it before."""
        draw = self.draw(step)
        result = StepResult(step, draw, self.lr_scheduler.get_last_lr()[0], self.gradients(self.make_batch(draw)))
        if not self.guard.holds_back(result.values):
            self.read([result])
        self.optimizer.step()
        self.weights.refresh()
        self.lr_scheduler.step()
        return result

    def read(self, results: list[StepResult]) -> list[tuple[float, float]]:
        """(loss, gradient norm) of several steps: the only wait for the device. Raises NonFiniteError, with the adaptor
        as it was before the first of them that is not finite."""
        values = torch.stack([r.values for r in results]).tolist()
        for result, pair in zip(results, values, strict=True):
            if not all(map(math.isfinite, pair)):
                raise NonFiniteError(self._non_finite(result.step, result.draw))
        return [tuple(pair) for pair in values]

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
        total, save, log_every = self.settings.train.iterations, self.settings.save, self.settings.logging.log_every
        journal = Journal(self.read, self.data.scales)
        with trackers(self.settings) as tracker, tqdm(total=total, desc="training", unit="step") as bar:
            for step in range(total):
                journal.add(self.step(step))
                bar.update()
                done = step + 1
                saves = done % save.per_steps == 0 and done < total
                if done % log_every == 0 or saves or done == total:
                    journal.write(tracker, bar)
                if saves:
                    self.save(f"{done}steps", done)
                if self._previews_at(done):
                    picture = self.preview(self.settings.run_dir / f"{self.settings.stem}_{done}steps.preview.png")
                    log_picture(tracker, picture, done)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else None
        path = self.save("last", total)
        if self.settings.preview.prompts:
            self.preview(path.with_suffix(".preview.png"))
        return Report(path, tuple(journal.losses), journal.seconds_per_step(), peak)

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

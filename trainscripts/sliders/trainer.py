"""The loop: batch → loss → step → save, and what surrounds it."""

import os
import time
from collections.abc import Callable
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
from sliders.device import DTYPES, use_device
from sliders.errors import InputError
from sliders.files import remove_leftovers, written_whole
from sliders.flat import FlatWeights
from sliders.fusion import can_fuse, fuse_blocks
from sliders.gradients import CapturedGradients, Gradients
from sliders.grids import labelled_grid
from sliders.interrupts import Interrupts
from sliders.journal import Journal, StepResult, trackers
from sliders.latents import LatentCache, views
from sliders.learner import Learner
from sliders.losses import LOSSES
from sliders.models.sdxl import SDXL, load_sdxl
from sliders.network import AdaptorNetwork
from sliders.preview import preview_multipliers, preview_sampling, sample_grid, sampling_from
from sliders.quantization import quantize
from sliders.samplers import StepSampler
from sliders.schema import Settings
from sliders.states import (
    changeable,
    check_same_run,
    first_difference,
    identity,
    model_fingerprint,
    newest_state,
    prune_states,
    state_path,
    write_state,
)
from sliders.watch import NonFiniteError, Watch


@dataclass(frozen=True)
class Report:
    """How a run went, since it was begun or resumed."""

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
        self.done = 0  # steps
        self.identity = identity(settings, data)  # reads the images, which may be gone at the first save
        self.device = use_device(settings.device)
        self.started = training_time()
        if self.device.startswith("cuda"):
            torch.zeros(0, device=self.device)  # CUDA starts with its first tensor, and knows no statistics before
            torch.cuda.reset_peak_memory_stats(self.device)
        self.model = model or load_sdxl(settings.pretrained_model, DTYPES[settings.train.precision])
        self.identity["model"] = model_fingerprint(self.model.unet)
        self.make_batch = self._encode()
        self.network = self._adapt()
        train = settings.train
        self.weights = FlatWeights(self.network, self.model.unet.dtype)
        self.learner = Learner(train, self.weights, self.device)
        self.watch = Watch(data, self.weights.master, train.skip_nonfinite)
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
        quantize(unet, self.settings.pretrained_model.quantize, self.device)
        unet.to(self.device, memory_format=torch.channels_last)
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
        """One optimizer step. A gradient that is not finite changes nothing; `read` then says so."""
        draw = self.draw(step)
        result = StepResult(step, draw, self.learner.lr, self.gradients(self.make_batch(draw)))
        self.learner.update(result.values)
        return result

    def read(self, results: list[StepResult]) -> list[tuple[float, float]]:
        """(loss, gradient norm) of several steps. Raises NonFiniteError, with the weights as they were before it."""
        return self.watch.read(results)

    def run(self, interrupts: Interrupts | None = None) -> Report:
        """Train up to `train.iterations` steps, saving every `save.per_steps` and at the end.

        Raises Stopped after a signal, NonFiniteError, and OSError if the last slider cannot be written.
        """
        interrupts = interrupts or Interrupts()
        journal = Journal(self.read, self.data.scales)
        self._clean_folder()
        with interrupts.deferred():
            try:
                self._train(journal, interrupts)
            except NonFiniteError as error:
                self.done = error.step
                self.learner.replay_schedule(error.step)  # the weights are as they were there, the schedule went on
                self._save_if_possible(self.save_state)
                raise
            peak = torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else None
            if self.done == self.settings.train.iterations:
                self._save_last()
        if self.settings.preview.prompts:
            self.preview("last")
        return Report(self.path("last"), tuple(journal.losses), journal.seconds_per_step(), peak)

    def _train(self, journal: Journal, interrupts: Interrupts) -> None:
        """Step by step, up to the last or to a signal; all but the last step's saves."""
        total, save, log_every = self.settings.train.iterations, self.settings.save, self.settings.logging.log_every
        with (
            trackers(self.settings) as log,
            tqdm(total=total, initial=self.done, desc="training", unit="step") as bar,
        ):
            while self.done < total and interrupts.received is None:
                journal.add(self.step(self.done))
                bar.update()
                self.done += 1
                saves = self.done < total and (self.done % save.per_steps == 0 or interrupts.received is not None)
                if self.done % log_every == 0 or saves or self.done == total:
                    journal.write(log, bar)
                if saves:
                    self._save_if_possible(lambda: self._save_both(f"{self.done}steps"))
                if self._previews_at(self.done):
                    self._save_if_possible(lambda: log.log_picture(self.preview(f"{self.done}steps"), self.done))

    def _clean_folder(self) -> None:
        """What killed processes left half-written, and states of a run that this one replaces."""
        if not self.settings.run_dir.is_dir():
            return
        remove_leftovers(self.settings.run_dir, self.settings.stem)
        prune_states(self.settings, self.done)

    def _save_if_possible(self, save: Callable[[], None]) -> None:
        try:
            save()
        except OSError as error:
            tqdm.write(
                f"warning: {self.settings.run_dir}: step {self.done} could not be saved ({error.strerror or error}): training "
                "goes on and the next save tries again; make room for it."
            )

    def _save_last(self) -> None:
        try:
            self._save_both("last")
        except OSError as error:
            raise InputError(
                f"{self.settings.run_dir}: the last slider could not be saved ({error.strerror or error}): make room, then go on "
                "with --resume from the newest state."
            ) from error

    def _save_both(self, suffix: str) -> None:
        """The state and the slider of the steps done; `resume` mends what a kill between them leaves. Raises OSError."""
        self.save_state()
        self.save(suffix, self.done)

    def save_state(self) -> None:
        """Raises OSError."""
        header = {"step": self.done, "started": self.started, "run": self.identity, "also": changeable(self.settings)}
        self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        write_state(state_path(self.settings, self.done), header, self.learner.tensors())
        prune_states(self.settings, self.done)

    def resume(self) -> None:
        """Go on where the newest whole state of the run's folder stopped, if it holds any.

        Raises InputError if it is of other data, settings or weights, or of more steps than this run is to have.
        """
        state, damaged = newest_state(self.settings)
        for path in damaged:
            print(f"warning: {path} is damaged and left out")
        if state is None:
            return
        check_same_run(state, self.identity)
        self.learner.load(state.tensors())
        self.done, self.started = state.step, state.header["started"]
        difference = first_difference(state.header["also"], changeable(self.settings), "train")
        if difference is not None:
            print(f"note: {difference}; the learning rate follows the new settings from step {self.done + 1} on")
            self.learner.replay_schedule(self.done)
        suffix = f"{self.done}steps"
        if self.done < self.settings.train.iterations and not self.path(suffix).exists():
            self._save_if_possible(lambda: self.save(suffix, self.done))

    def path(self, suffix: str) -> Path:
        return self.settings.run_dir / f"{self.settings.stem}_{suffix}.safetensors"

    def save(self, suffix: str, steps: int) -> Path:
        settings = self.settings
        path = self.path(suffix)
        metadata = slider_metadata(
            settings,
            self.data,
            stem=path.stem,
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

    def preview(self, suffix: str) -> Image.Image:
        """Write, where the slider of that suffix lies, the picture of `preview.prompts` × multipliers, at the size and
        guidance of the first prompt set."""
        settings, first = self.settings.preview, self.settings.prompts[0]
        width, height = self.data.fitted_size(0, first.resolution)
        multipliers = settings.multipliers or preview_multipliers(self.data.scales)
        embeds = self.make_batch.prompt_embeds
        jobs = [(embeds[prompt], settings.seed + row) for row, prompt in enumerate(settings.prompts)]
        sampling = preview_sampling(width, height, settings.steps, first.guidance_scale)
        with sampling_from(self.model, self.network, self.device):
            pictures = sample_grid(self.model, self.network, jobs, embeds[""], multipliers, sampling)
        picture = labelled_grid(pictures, settings.prompts, [f"{m:g}" for m in multipliers])
        with written_whole(self.path(suffix).with_suffix(".preview.png")) as temporary:
            picture.save(temporary, format="PNG")
        return picture


def training_time() -> float:
    """Seconds since 1970 that a file says it was trained at; SOURCE_DATE_EPOCH, where set, makes files reproducible."""
    return float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

"""The training loop: batch -> loss -> step -> save, and its previews and checkpoints."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from sliders.adaptors.flat_weights import FlatWeights
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.device import DTYPES, gpu_memory, place, use_device
from sliders.compute.quantization import quantize
from sliders.data.contract import Steps
from sliders.data.sources import SOURCES
from sliders.fast.attention import ChosenAttention
from sliders.fast.compilation import compile_denoiser
from sliders.fast.path import FastPath
from sliders.formats.checkpoint import changeable, check_same_run, checkpoint_path, first_difference
from sliders.formats.model_loras import merge_loras
from sliders.models.base import Model, PromptEmbeds
from sliders.models.layers import architecture_of
from sliders.sample.preview import Previews
from sliders.system.errors import InputError
from sliders.system.processes import Processes
from sliders.system.progress import now
from sliders.system.signals import Interrupts
from sliders.train.denoiser import AdaptedDenoiser
from sliders.train.journal import Journal, trackers
from sliders.train.learner import Learner
from sliders.train.losses import LOSSES
from sliders.train.monitor import NonFiniteError, Watch, sum_of_bits
from sliders.train.outputs import NoOutputs, Outputs, reasons
from sliders.train.plan import Plan
from sliders.train.resources import ENCODING, PLACING, during, nearly_full
from sliders.train.step import Step, StepResult


@dataclass(frozen=True)
class Report:
    """How a run went since it was started or resumed."""

    path: Path
    losses: tuple[float, ...]
    seconds_per_step: float  # median, which leaves out compiling and warm-up
    peak_memory: int | None  # bytes on the GPU, encoding included
    shown: tuple[Path, ...] = ()  # picture and page at the end


class Trainer:
    """One slider in training. `Trainer(plan).run()` trains and saves it.

    model: one on the CPU, instead of the one that the settings name. processes: those that train it together.
    """

    def __init__(self, plan: Plan, model: Model | None = None, processes: Processes | None = None):
        self.plan, self.settings, self.data, self.device = plan, plan.settings, plan.data, plan.device
        settings, data = self.settings, self.data
        self.done = 0  # steps
        self._warned_of_memory = False
        self.processes = processes or Processes()
        self.outputs = (Outputs if self.processes.first else NoOutputs)(plan, self.processes)
        use_device(self.device)
        if self.device.startswith("cuda"):
            torch.zeros(
                0, device=self.device
            )  # CUDA starts with its first tensor; before that it has no statistics to reset
            torch.cuda.reset_peak_memory_stats(self.device)
        if model is None:
            now("loading the model")
        self.model = model or plan.family.load(settings.pretrained_model, DTYPES[settings.train.precision])
        self.outputs.know_model(self.model)
        self._merge_loras()
        with during(ENCODING):
            source = SOURCES[settings.data.kind].source(
                settings, data, self.model, plan.timesteps, self.device, self.processes
            )
            self.embeds = self._encode([*source.texts, "", *settings.preview.prompts])
        with during(PLACING):
            self.network = self._adapt()
        self.weights = self._speed_up()
        self.learner = Learner(settings.train, self.weights, self.device)
        self.watch = Watch(data, self.weights.master, settings.train.skip_nonfinite)
        self.step = self._make_step(source.steps(self.network, self.embeds))
        self.previews: Previews | None = None
        if settings.preview.prompts and self.processes.first:
            self.previews = Previews(settings, data, self.model, self.network, self.embeds, self.device)

    def _merge_loras(self) -> None:
        """Makes the plan's LoRAs part of the frozen model, before anything is computed with it or stored in fewer bits."""
        plan, model = self.plan, self.model
        if plan.loras:
            now("merging LoRAs into the model")
            weightless = plan.family.weightless_denoiser(self.settings.pretrained_model.name_or_path)
            merge_loras(plan.loras, model.denoiser, weightless, plan.family, model.dtype)

    def _encode(self, prompts: list[str]) -> dict[str, PromptEmbeds]:
        """Encodes each prompt once; the text encoders then leave the device."""
        now("encoding the prompts")
        embeds = self.model.encode_prompts(prompts, self.device)
        self.model.free_text_encoders()
        self.model.objective = self.model.objective.to(self.device)
        return embeds

    def _adapt(self) -> AdaptorNetwork:
        other, denoiser = self.settings.other, self.model.denoiser
        now(f"preparing the denoiser on {self.device}")
        part = architecture_of(denoiser).quantized
        quantize(denoiser, self.settings.pretrained_model.quantize, self.device, self.model.dtype, part)
        place(denoiser, self.device, self.model.dtype)
        denoiser.to(memory_format=torch.channels_last)
        if other.gradient_checkpointing:
            # Nothing random runs inside, and saving the generator's state would make the GPU wait.
            denoiser.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
        return AdaptorNetwork(denoiser, self.settings.network, seed=self.settings.train.seed)

    def _speed_up(self) -> FlatWeights:
        """Lets the denoiser compute faster, as the settings want it. Returns the weights that it then reads."""
        other, denoiser = self.settings.other, self.model.denoiser
        if other.takes_fast_path:
            (weights,) = FastPath(denoiser, [self.network], other.attention, trains=True).weights
            return weights
        ChosenAttention(denoiser, other.attention, kernels=False)
        compile_denoiser(denoiser, other.torch_compile, architecture_of(denoiser).compiled)
        return FlatWeights(self.network)

    def _make_step(self, steps: Steps) -> Step:
        settings, device = self.settings, self.model.denoiser.device
        loss = LOSSES[settings.data.kind][settings.train.loss]
        denoiser, table = AdaptedDenoiser(self.model, self.network), steps.timesteps.weight_table()
        step = Step(
            settings.train, steps.draw, steps.make_batch, loss, denoiser, self.weights, self.learner, self.processes,
            None if table is None else torch.tensor(table, device=device), settings.other.torch_amp,
        )  # fmt: skip
        if device.type == "cuda" and settings.other.cuda_graph != "off":
            step.capture(device)
        return step

    def read(self, results: list[StepResult]) -> list[tuple[float, float]]:
        """(loss, gradient norm) of several steps. Raises NonFiniteError; the weights are then those before the bad steps."""
        return self.watch.read(results)

    def run(self, interrupts: Interrupts | None = None) -> Report:
        """Train up to `train.iterations` steps, saving every `save.per_steps` and at the end.

        Raises Stopped after a signal, NonFiniteError, and InputError if the last slider cannot be written.
        """
        interrupts = interrupts or Interrupts()
        journal = Journal(self.read)
        self.processes.check_equal(self.outputs.identity, "the model, the images or the settings are")
        self._check_equal()
        self.outputs.begin(self.done)
        with interrupts.deferred():
            try:
                self._train(journal, interrupts)
            except NonFiniteError as error:
                self.done = error.step
                self.learner.replay_schedule(error.step)  # the weights are those of that step, but the schedule went on
                self._save_stopped()
                raise
            peak = torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else None
            if self.done == self.settings.train.iterations:
                self._save_last()
        if self.previews:
            self._picture("last", interrupts)
        losses, shown = tuple(journal.losses), tuple(self.outputs.shown)
        return Report(self.outputs.path("last"), losses, journal.seconds_per_step(), peak, shown)

    def _train(self, journal: Journal, interrupts: Interrupts) -> None:
        """Train until the last step or a signal, with every save except the last step's."""
        total, save, log_every = self.settings.train.iterations, self.settings.save, self.settings.logging.log_every
        with (
            trackers(self.settings) as log,
            tqdm(total=total, initial=self.done, desc="training", unit="step") as bar,
        ):
            while self.done < total and not self._signalled(interrupts):
                journal.add(self.step(self.done))
                bar.update()
                self.done += 1
                saves = self.done < total and self.done % save.per_steps == 0
                if self.done % log_every == 0 or saves or self.done == total:
                    journal.write(log, bar)
                    self._watch_memory()
                if saves:
                    self._save_midway()
                if self._previews_at(self.done) and interrupts.received is None:
                    picture = self._picture(f"{self.done}steps", interrupts)
                    if picture is not None:
                        log.log_picture(picture, self.done)
            # A signal may arrive anywhere in the loop, most often while it waits for the loss
            journal.write(log, bar)
            if self.done < total:
                self._save_stopped()

    def _watch_memory(self) -> None:
        """Warns once when the GPU's memory is nearly full."""
        card = gpu_memory(self.device)
        if card and not self._warned_of_memory and (sentence := nearly_full(self.settings, self.plan.family, card)):
            self._warned_of_memory = True
            self._warn(sentence)

    def _signalled(self, interrupts: Interrupts) -> bool:
        """Whether any process has received a signal; then all stop after the same step."""
        if signum := self.processes.largest(interrupts.received or 0):
            interrupts.received = signum
        return bool(signum)

    def _save(self, suffix: str) -> dict[str, OSError]:
        self._check_equal()
        return self.outputs.save(suffix, self.done, self.learner.tensors(), self.network)

    def _check_equal(self) -> None:
        self.processes.check_equal(sum_of_bits(self.weights.master), f"step {self.done}: the weights are")

    def _save_midway(self) -> None:
        failures = self._save(f"{self.done}steps")
        if failures:
            self._warn(
                f"{reasons(failures)}: training goes on and the next save tries again; make room, or close what has the file open."
            )

    def _save_stopped(self) -> None:
        """Save what a run that ends early has not saved yet."""
        if self.done == 0 or checkpoint_path(self.settings, self.done).exists():
            return
        failures = self._save(f"{self.done}steps")
        if failures:
            self._warn(f"{reasons(failures)}: --resume will continue from the checkpoint before it, if there is one.")

    def _save_last(self) -> None:
        failures = self._save("last")
        if not failures:
            return
        path = self.outputs.path("last")
        kept = (
            f"{path.name} is complete" if path.exists() and "the last slider" not in failures else "it is not saved yet"
        )
        raise InputError(
            f"{self.settings.run_dir}: {reasons(failures)}; {kept}: make room, then continue with --resume from the newest checkpoint."
        ) from next(iter(failures.values()))

    def _warn(self, sentence: str) -> None:
        tqdm.write(f"warning: {self.settings.run_dir}: step {self.done}: {sentence}")

    def resume(self) -> None:
        """Continue from the plan's checkpoint, if it has one. Raises InputError if it is of another model."""
        for path in self.plan.damaged:
            print(f"warning: {path} is damaged and ignored")
        checkpoint = self.plan.checkpoint
        if checkpoint is None:
            return
        check_same_run(checkpoint, self.outputs.identity)
        self.learner.load(checkpoint.tensors())
        self.done, self.outputs.started = checkpoint.step, checkpoint.header["started"]
        if (then := checkpoint.header.get("processes", 1)) != self.processes.count:
            print(
                f"note: {then} process(es) before, {self.processes.count} now: so many times batch_size are a step's pairs"
            )
        difference = first_difference(checkpoint.header["also"], changeable(self.settings), "train")
        if difference is not None:
            print(f"note: {difference}; the learning rate follows the new settings from step {self.done + 1} on")
            self.learner.replay_schedule(self.done)
        suffix = f"{self.done}steps"
        if self.done < self.settings.train.iterations and not self.outputs.path(suffix).exists():
            self._save_midway()

    def _previews_at(self, done: int) -> bool:
        """Every `preview.every` steps, and beside each slider; the last picture is drawn after training."""
        settings, every = self.settings, self.settings.preview.every
        if not self.previews or done == settings.train.iterations:
            return False
        return (every > 0 and done % every == 0) or (settings.save.sidecars and done % settings.save.per_steps == 0)

    def _picture(self, suffix: str, interrupts: Interrupts) -> Image.Image | None:
        """Draw and save the preview. A failure is a warning: it never ends the training."""
        try:
            with interrupts.at_once():
                pictures = self._drawn(suffix == "last")
                picture = self.previews.grid(pictures)
                self.outputs.save_picture(suffix, picture)
                if suffix == "last":
                    self.step.free_memory()  # no step follows
                    self.outputs.save_page(suffix, *self.previews.page(self.outputs.path(suffix).stem, pictures))
                return picture
        except OSError as error:
            self._warn(f"the picture or its page could not be saved ({error.strerror or error}).")
        except torch.OutOfMemoryError:
            self._warn(
                "the GPU has no memory left for a picture during training; sample_slider-xl.py draws them afterwards."
            )
        return None

    def _drawn(self, last: bool) -> Tensor:
        try:
            return self.previews.pictures(last, decode_on_cpu=False)
        except torch.OutOfMemoryError:
            pass  # retry below, when the error no longer holds the tensors of this attempt
        self.step.free_memory()
        return self.previews.pictures(last)

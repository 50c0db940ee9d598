"""The plan of a run: everything that is checked, and found out, before any weights are loaded."""

import glob
import importlib.util
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from sliders.adaptors import ALGORITHMS, UNSUITABLE
from sliders.adaptors.network import AdaptorNetwork
from sliders.compute.device import gpu_memory, how_to_get_gpu, is_gpu_missing, torch_device, why_no_gpu
from sliders.compute.quantization import check_quantization, quantizable
from sliders.config.optimizers import OPTIMIZERS
from sliders.config.prompts import PromptSet
from sliders.config.schema import Network, PretrainedModel, Settings, Train
from sliders.data.contract import Checked
from sliders.data.latents import CROP_ROOM
from sliders.data.sources import SOURCES
from sliders.data.timesteps import allowed_timesteps
from sliders.fast.attention import check_attention
from sliders.fast.compilation import check_compilation
from sliders.fast.kernel_support import can_fuse
from sliders.formats.checkpoint import Checkpoint, check_same_run, checkpoints_of, identity, newest_checkpoint
from sliders.formats.model_loras import ModelLoRA, check_loras
from sliders.models import Family, find_family
from sliders.models.layers import architecture_of, describe_choice
from sliders.sample.preview import preview_remarks
from sliders.sample.templates import is_read_as_written
from sliders.system.errors import InputError, either
from sliders.system.files import check_folder
from sliders.system.installation import how_to_install
from sliders.system.lock import check_unlocked
from sliders.train.losses import LOSSES
from sliders.train.memory import Demand, Frozen, advise, describe_need
from sliders.train.optimizers import build_lr_scheduler, build_optimizer
from sliders.train.resources import DiskNeed, disk_need, smaller_images


@dataclass(frozen=True)
class Plan:
    """One run that has passed every check, with what the checks found."""

    settings: Settings
    family: Family
    device: str  # as torch calls it
    data: Checked
    layers: tuple[str, ...]  # module paths that get an adaptor
    parameters: int  # of all adaptors together
    checkpoint: Checkpoint | None  # to resume from
    damaged: tuple[Path, ...]  # checkpoints newer than that one, which are not whole
    timesteps: tuple[int, ...]  # that may be drawn
    choice: str = ""  # of layers, in words
    frozen: Frozen | None = None  # weights of the model; None for narrow ones
    loras: tuple[ModelLoRA, ...] = ()  # that become part of the model
    card: tuple[int, int] | None = None  # (free, total) bytes of the GPU, if there is one

    @cached_property
    def identity(self) -> dict:
        """What makes the run this one. Reads every image once."""
        return identity(self.settings, self.data, self.loras)

    @property
    def demand(self) -> Demand | None:
        """What the run needs of a GPU's memory. None for narrow models, and where no GPU is to be used."""
        settings, prompts = self.settings, self.settings.prompts
        if self.frozen is None or not settings.device.isdigit():
            return None
        sizes = {p: max(w * h for w, h in self.data.fitted_sizes(p.resolution)) for p in prompts}
        room = CROP_ROOM**2 if any(p.dynamic_crops for p in prompts) else 1
        return Demand(
            family=settings.family, frozen=self.frozen, parameters=self.parameters,
            pixels=max(2 * p.batch_size * size for p, size in sizes.items()),
            picture=int(room * max(sizes.values())) if settings.data.kind == "images" else 0,
            precision=settings.train.precision, quantize=settings.pretrained_model.quantize,
            checkpointing=settings.other.gradient_checkpointing, optimizer=settings.train.optimizer,
            fused=settings.other.takes_fast_path and (self.card is None or can_fuse(self.device)),
        )  # fmt: skip

    @property
    def disk_need(self) -> DiskNeed:
        """What the run is still to write, judged by the names of the checkpoints in its folder."""
        found = checkpoints_of(self.settings)
        done = max(found, default=0) if self.settings.resume else 0
        return disk_need(self.settings, self.parameters, done, len(found))


def make_plan(settings: Settings) -> Plan:
    """Raises InputError for whatever would stop the run later, except a full disk, which several runs may share."""
    device, family = torch_device(settings.device), find_family(settings.family, settings.pretrained_model)
    _check_names(settings)
    family.check_settings(settings)
    family.check_source(settings.pretrained_model)
    _check_device(settings, device)
    if settings.logging.use_wandb and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"logging.use_wandb is true, but wandb is not installed: {how_to_install('wandb', 'wandb')}, or set it to false."
        )
    optimizer = build_optimizer(settings.train, [torch.nn.Parameter(torch.zeros(1))])
    build_lr_scheduler(settings.train, optimizer)
    data = SOURCES[settings.data.kind].find(settings, family.facts.size_multiple)
    timesteps = allowed_timesteps(settings.train)
    _check_output(settings)
    _check_prompt(settings)
    checkpoint, damaged = _checkpoint_to_resume(settings)
    layers, parameters, choice, frozen = _weightless(family, settings.pretrained_model.name_or_path, settings.network)
    loras = _loras(family, settings.pretrained_model)
    plan = Plan(
        settings, family, device, data, layers, parameters, checkpoint, tuple(damaged), timesteps, choice, frozen,
        loras, gpu_memory(device),
    )  # fmt: skip
    if checkpoint is not None:
        check_same_run(checkpoint, {**plan.identity, "model": checkpoint.header["run"]["model"]})
    return plan


def _loras(family: Family, model: PretrainedModel) -> tuple[ModelLoRA, ...]:
    if not model.loras:
        return ()
    return check_loras(model.loras, family.weightless_denoiser(model.name_or_path), family)


def _check_names(settings: Settings) -> None:
    """Names that are looked up in the table of the file that owns them."""
    if reason := UNSUITABLE.get(settings.network.algo):
        raise InputError(
            f"network.algo: {settings.network.algo} cannot be a slider: {reason}. Use {either(ALGORITHMS)}."
        )
    chosen = (
        ("train.loss", settings.train.loss, LOSSES[settings.data.kind]),
        ("network.algo", settings.network.algo, ALGORITHMS),
    )
    for key, name, table in chosen:
        if name not in table:
            raise InputError(f"{key}: {name!r} is not known: use {either(table)}.")


def _check_device(settings: Settings, device: str) -> None:
    """Raises InputError for what the device cannot do, with how to get a GPU where one was asked for."""
    try:
        check_quantization(settings.pretrained_model.quantize, device)
        check_attention(settings.other, device, settings.train.precision)
        check_compilation(settings.other.torch_compile, device)
    except InputError as error:
        if not is_gpu_missing(settings.device):
            raise
        raise InputError(f"{error}\n--device: {how_to_get_gpu()}") from error


@lru_cache(maxsize=8)
def _weightless(family: Family, name_or_path: str, network: Network) -> tuple[tuple[str, ...], int, str, Frozen | None]:
    """Layers and number of parameters of the run's network, built on the meta device, the layers in words, and the model's weights.

    The latter are None for a narrow model.
    """
    with torch.device("meta"):
        denoiser = family.weightless_denoiser(name_or_path)
        choice = describe_choice(denoiser, network)
        frozen = frozen_weights(denoiser) if family.is_full_size(name_or_path) else None
        adaptors = AdaptorNetwork(denoiser, network)
    return adaptors.module_paths, adaptors.num_parameters(), choice, frozen


def frozen_weights(denoiser: torch.nn.Module) -> Frozen:
    """Counts the weights of a denoiser that no network adapts yet."""
    linear = [denoiser.get_submodule(name) for name in quantizable(denoiser, architecture_of(denoiser).quantized)]
    of_linear = sum(layer.weight.numel() for layer in linear)
    total = sum(p.numel() for p in denoiser.parameters())
    return Frozen(total - of_linear, of_linear, sum(layer.out_features for layer in linear))


def _checkpoint_to_resume(settings: Settings) -> tuple[Checkpoint | None, list[Path]]:
    """With `--resume` the newest whole checkpoint, if any, and newer ones that are damaged.

    Raises InputError if all are damaged, or if it is further on than the run is to go.
    """
    if not settings.resume:
        return None, []
    checkpoint, damaged = newest_checkpoint(settings)
    if checkpoint is not None:
        checkpoint.check_values()
    if checkpoint is not None and checkpoint.step > settings.train.iterations:
        raise InputError(
            f"--resume: {checkpoint.path.name} was saved after {checkpoint.step} steps, but train.iterations is "
            f"{settings.train.iterations}: raise it, or choose another --name."
        )
    return checkpoint, damaged


def _check_output(settings: Settings) -> None:
    """The folder must be one that can be written to, and earlier sliders are not overwritten unasked."""
    longest = f"{settings.stem}_{settings.train.iterations}steps.safetensors"
    check_folder(settings.run_dir, "save.path", "choose another --save_path or --name", longest)
    check_unlocked(settings.run_dir)
    run_dir, checkpoints = settings.run_dir, checkpoints_of(settings)
    earlier = sorted(run_dir.glob("*.safetensors")) if run_dir.exists() else []
    if checkpoints and not (settings.resume or settings.overwrite):
        raise InputError(
            f"{run_dir} holds a checkpoint of a run after {next(iter(checkpoints))} steps: add --resume to continue from "
            "there, or --overwrite to start again."
        )
    if earlier and not checkpoints and not settings.overwrite:
        raise InputError(
            f"{run_dir} holds {len(earlier)} slider(s) of an earlier run{' and no checkpoint' if settings.resume else ''}: "
            "choose another --name, or add --overwrite to replace them."
        )


def _check_prompt(settings: Settings) -> None:
    """A new slider must be one that a web UI's prompt can name. A run that has begun keeps its name."""
    has_begun = settings.run_dir.is_dir() and any(settings.run_dir.iterdir())
    if not has_begun and not is_read_as_written(f"{settings.stem}_last", settings.data.scales):
        raise InputError(
            f"save.name: {settings.save.name!r} would not be read as it is written in the prompts of a web UI with Dynamic Prompts, "
            "where { } $ # % and two _ in a row have a meaning: leave them out, and _ at the end (--name)."
        )


def describe(plan: Plan, processes: int = 1, whole: bool = True) -> str:
    """The plan as text. whole: with a row for each image name, as `--dry_run` prints it."""
    settings, data = plan.settings, plan.data
    network, train = settings.network, settings.train
    each = f" in each of {processes} processes" if processes > 1 else ""
    sets = [f"{p.batch_size} pair(s){each} at {_sizes(data, p)} px" for p in settings.prompts]
    saves = (train.iterations - 1) // settings.save.per_steps
    lines = [
        f"slider  {settings.run_dir}",
        f"model   {settings.pretrained_model.name_or_path}, {train.precision} on {plan.device}",
        *(f"with    {lora.path} at {lora.weight:g}, merged into {lora.layers} layers" for lora in plan.loras),
        f"layers  {len(plan.layers)} of {plan.choice}: {_algorithm(network)}, {plan.parameters:,} parameters",
        f"steps   {train.iterations} of {' or '.join(dict.fromkeys(sets))}, {train.optimizer} lr {train.lr:g} "
        f"{train.lr_scheduler}, seed {train.seed}",
        f"noise   timesteps {min(plan.timesteps)} to {max(plan.timesteps)}, {_drawn(train)}",
        *([f"memory  {describe_need(plan.demand, plan.card)}"] if plan.demand else []),
        *([f"resume  {_resumption(plan)}"] if settings.resume else []),
        f"files   {saves + 1}: {f'every {settings.save.per_steps} steps, and ' if saves else ''}{settings.stem}_last.safetensors",
        *data.describe(settings.prompts, whole or settings.logging.verbose),
        *_remarks(plan),
    ]
    if settings.logging.verbose:
        lines += ["", "prompts", *(f"  {p.model_dump_json()}" for p in settings.prompts)]
        lines += ["", "layers", *(f"  {p}" for p in plan.layers)]
    return "\n".join(lines)


def _drawn(train: Train) -> str:
    """How timesteps are drawn, in words."""
    if train.timestep_shift is not None:
        return f"logit-normal with shift {train.timestep_shift:g}"
    return "measured on the images" if train.timestep_bias == "auto" else f"bias {train.timestep_bias:g}"


def _algorithm(network: Network) -> str:
    factor = f" factor {network.factor}" if network.factor else ""
    return (
        network.algo
        if network.algo == "full"
        else f"{network.algo}{factor} rank {network.rank} alpha {network.alpha:g}"
    )


def _resumption(plan: Plan) -> str:
    if plan.checkpoint is not None:
        return f"from {plan.checkpoint.path.name}"
    settings = plan.settings
    folders = sorted(p for p in settings.save.path.glob(f"{glob.escape(settings.save.name)}_alpha*") if p.is_dir())
    others = [p.name for p in folders if p != settings.run_dir]
    hint = f" ({others[0]} has another rank, alpha or training_method)" if others else ""
    return f"there is no checkpoint: from step 1{hint}"


def _sizes(data: Checked, prompts: PromptSet) -> str:
    sizes = data.fitted_sizes(prompts.resolution)
    shown = ", ".join(f"{w}×{h}" for w, h in sizes[:4]) + (" …" if len(sizes) > 4 else "")
    smaller = " and smaller" if prompts.dynamic_resolution else ""
    return shown + smaller + (" in random crops" if prompts.dynamic_crops else "")


def _remarks(plan: Plan) -> list[str]:
    """What is allowed, but perhaps not meant."""
    settings = plan.settings
    remarks = [
        *settings.notes,
        *plan.family.remarks(settings),
        *plan.data.remarks(settings.prompts),
        *preview_remarks(settings.preview, plan.data),
        *(note for lora in plan.loras for note in lora.notes),
    ]
    if plan.demand and (advice := advise(plan.demand, plan.card, smaller_images(settings, plan.family))):
        remarks.append(advice)
    if plan.loras:
        tags = " ".join(lora.tag for lora in plan.loras)
        remarks.append(f"pretrained_model.loras: the slider is made for the model with {tags}: add that to prompts.")
    train = settings.train
    if OPTIMIZERS[train.optimizer].finds_lr and train.lr < 0.1:
        remarks.append(
            f"{train.optimizer} finds its step size itself and takes lr as a factor: 1.0 is usual, {train.lr:g} is not."
        )
    if settings.network.algo == "full" and {"rank", "alpha"} & settings.network.model_fields_set:
        remarks.append("rank and alpha have no effect on network.algo: full, except in the name of the run's folder.")
    if is_gpu_missing(settings.device):
        full_size = plan.family.is_full_size(settings.pretrained_model.name_or_path)
        remarks.append(why_no_gpu("trains", full_size, plan.family.facts.title))
    return ["", *(f"note: {r}" for r in remarks)] if remarks else []

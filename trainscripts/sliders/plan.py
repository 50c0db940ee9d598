"""Everything about a run that can be checked and told before weights are loaded."""

import glob
import importlib.util
from functools import lru_cache

import torch

from sliders.attention import check_attention
from sliders.compilation import check_compilation
from sliders.dataset import ScaleFolders
from sliders.device import misses_gpu, torch_device
from sliders.errors import InputError
from sliders.files import check_folder
from sliders.installation import how_to_get_gpu, how_to_install, why_no_gpu
from sliders.lock import check_unlocked
from sliders.models.sdxl_unet import is_full_size, weightless_unet
from sliders.models.sources import check_source
from sliders.network import AdaptorNetwork
from sliders.optim import FINDS_LR_ITSELF, build_lr_scheduler, build_optimizer
from sliders.quantization import check_quantization
from sliders.resources import DiskNeed, disk_need
from sliders.schema import Network, PromptSet, Settings
from sliders.states import StateFile, check_same_run, identity, newest_state, states_of


def check_run(settings: Settings) -> ScaleFolders:
    """Raises InputError for whatever would stop the run later, but for a small disk, which several runs may share; returns
    its data set."""
    device = torch_device(settings.device)
    check_source(settings.pretrained_model)
    _check_device(settings, device)
    if settings.logging.use_wandb and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"logging.use_wandb is true, but wandb is not installed: {how_to_install('wandb', 'wandb')}, or set it to false."
        )
    optimizer = build_optimizer(settings.train, [torch.nn.Parameter(torch.zeros(1))])
    build_lr_scheduler(settings.train, optimizer)
    data = ScaleFolders.find(settings.data)
    _check_output(settings)
    state = state_to_resume(settings)
    if state is not None:
        check_same_run(state, {**identity(settings, data), "model": state.header["run"]["model"]})
    return data


def _check_device(settings: Settings, device: str) -> None:
    """Raises InputError for what the device cannot do, and tells why it is none that can."""
    try:
        check_quantization(settings.pretrained_model.quantize, device)
        check_attention(settings.other, device, settings.train.precision)
        check_compilation(settings.other.torch_compile, device)
    except InputError as error:
        if not misses_gpu(settings.device):
            raise
        raise InputError(f"{error}\n--device: {how_to_get_gpu()}") from error


def disk_need_of(settings: Settings) -> DiskNeed:
    """What the run is still to write, going by the names of the states that are there."""
    states = states_of(settings)
    done = max(states, default=0) if settings.resume else 0
    return disk_need(settings, weightless_adaptors(settings).num_parameters(), done, len(states))


def weightless_adaptors(settings: Settings) -> AdaptorNetwork:
    """The run's network on the meta device: its layers and sizes without its numbers."""
    return _weightless_adaptors(settings.pretrained_model.name_or_path, settings.network)


@lru_cache(maxsize=8)
def _weightless_adaptors(name_or_path: str, network: Network) -> AdaptorNetwork:
    with torch.device("meta"):
        return AdaptorNetwork(weightless_unet(name_or_path), network)


def state_to_resume(settings: Settings) -> StateFile | None:
    """With `--resume` the newest whole state, if there is any. Raises InputError if all are damaged or it is too far on."""
    state = newest_state(settings)[0] if settings.resume else None
    if state is not None and state.step > settings.train.iterations:
        raise InputError(
            f"--resume: {state.path.name} has learnt {state.step} steps already, but train.iterations is "
            f"{settings.train.iterations}: raise it, or choose another --name."
        )
    return state


def _check_output(settings: Settings) -> None:
    """Sliders made earlier are not written over, and the folder must be one that can be written to."""
    longest = f"{settings.stem}_{settings.train.iterations}steps.safetensors"
    check_folder(settings.run_dir, "save.path", "choose another --save_path or --name", longest)
    check_unlocked(settings.run_dir)
    _check_earlier(settings)


def _check_earlier(settings: Settings) -> None:
    """What an earlier run left is replaced or continued only when asked for."""
    run_dir, states = settings.run_dir, states_of(settings)
    earlier = sorted(run_dir.glob("*.safetensors")) if run_dir.exists() else []
    if states and not (settings.resume or settings.overwrite):
        raise InputError(
            f"{run_dir} holds the state of a run after {next(iter(states))} steps: add --resume to go on from there, or "
            "--overwrite to start anew."
        )
    if earlier and not states and not settings.overwrite:
        raise InputError(
            f"{run_dir} holds {len(earlier)} slider(s) of an earlier run{' and no state' if settings.resume else ''}: "
            "choose another --name, or add --overwrite to replace them."
        )


def describe_run(settings: Settings, data: ScaleFolders) -> str:
    """The plan, as `--dry_run` prints it."""
    network, train = settings.network, settings.train
    adaptors = weightless_adaptors(settings)
    sets = [f"{p.batch_size} pair(s) at {_sizes(data, p)} px" for p in settings.prompts]
    saves = (train.iterations - 1) // settings.save.per_steps
    lines = [
        f"slider  {settings.run_dir}",
        f"model   {settings.pretrained_model.name_or_path}, {train.precision} on {torch_device(settings.device)}",
        f"layers  {len(adaptors.module_paths)} of {network.type} {network.training_method}: {network.algo} "
        f"rank {network.rank} alpha {network.alpha:g}, {adaptors.num_parameters():,} parameters",
        f"steps   {train.iterations} of {' or '.join(dict.fromkeys(sets))}, {train.optimizer} lr {train.lr:g} "
        f"{train.lr_scheduler}, seed {train.seed}",
        *([f"resume  {_resumption(settings)}"] if settings.resume else []),
        f"files   {saves + 1}: {f'every {settings.save.per_steps} steps, and ' if saves else ''}{settings.stem}_last.safetensors",
        f"images  {len(data.names)} names × {len(data.scales)} scales",
        "",
        data.table(),
        *_remarks(settings, data),
    ]
    if settings.logging.verbose:
        lines += [
            "",
            "prompts",
            *(f"  {p.model_dump_json()}" for p in settings.prompts),
            "",
            "layers",
            *(f"  {p}" for p in adaptors.module_paths),
        ]
    return "\n".join(lines)


def _resumption(settings: Settings) -> str:
    state = state_to_resume(settings)
    if state is not None:
        return f"from {state.path.name}"
    folders = sorted(p for p in settings.save.path.glob(f"{glob.escape(settings.save.name)}_alpha*") if p.is_dir())
    others = [p.name for p in folders if p != settings.run_dir]
    hint = f" ({others[0]} is of another rank, alpha or training_method)" if others else ""
    return f"nothing is there to go on from: from step 1{hint}"


def _sizes(data: ScaleFolders, prompts: PromptSet) -> str:
    sizes = sorted({data.fitted_size(name, prompts.resolution) for name in range(len(data.names))})
    shown = ", ".join(f"{w}×{h}" for w, h in sizes[:4]) + (" …" if len(sizes) > 4 else "")
    return (
        shown
        + (" and smaller" if prompts.dynamic_resolution else "")
        + (" in random crops" if prompts.dynamic_crops else "")
    )


def _remarks(settings: Settings, data: ScaleFolders) -> list[str]:
    """What is allowed, but perhaps not meant."""
    remarks = []
    if data.ignored:
        remarks.append(
            f"ignored, being no images: {', '.join(data.ignored[:8])}{' …' if len(data.ignored) > 8 else ''}."
        )
    resolution = max(p.resolution for p in settings.prompts)
    small = [n for n, (w, h) in zip(data.names, data.sizes, strict=True) if w * h < 0.8 * resolution**2]
    if small:
        remarks.append(
            f"{len(small)} name(s), such as {small[0]}, are smaller than {resolution} px and will be enlarged."
        )
    if settings.train.optimizer in FINDS_LR_ITSELF and settings.train.lr < 0.1:
        remarks.append(
            f"{settings.train.optimizer} finds its step size itself and takes lr as a factor: 1.0 is usual, {settings.train.lr:g} is not."
        )
    if misses_gpu(settings.device):
        remarks.append(why_no_gpu("trains", is_full_size(settings.pretrained_model.name_or_path)))
    return ["", *(f"note: {r}" for r in remarks)] if remarks else []

"""Disk and GPU memory: what a run will need of the one, and what to do when the other is used up."""

import re
import shutil
from pathlib import Path

from sliders.errors import InputError
from sliders.schema import Settings

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MASTER_BYTES = 4
# what an optimizer keeps for each weight
OPTIMIZER_BYTES = {
    "adam": 8, "adamw": 8, "lion": 4, "prodigy": 16, "dadaptadam": 12, "dadaptlion": 8, "adam8bit": 2, "adamw8bit": 2, "lion8bit": 1,
}  # fmt: skip

GIB = 2**30
# Measured with bench_step.py on a full-size SDXL in bfloat16
ACTIVATIONS = 8.6 * GIB  # of a pair of images of a megapixel
CHECKPOINTED = 0.06  # share of it with gradient checkpointing
QUANTIZED_AWAY = 2.5 * GIB  # of the frozen UNet


def check_disk(settings: Settings, parameters: int, done: int = 0, states: int = 0) -> None:
    """Raises InputError if what a run writes from step `done` on will not fit where `save.path` is.

    parameters: of the adaptor. states: how many states are there already, which new ones will take the place of.
    """
    save, train = settings.save, settings.train
    sliders = (train.iterations - 1) // save.per_steps - done // save.per_steps + 1
    new_states = max(1, min(sliders, save.keep + 1) - states)  # one more than is kept, until the oldest goes
    slider = parameters * WEIGHT_BYTES[save.precision]
    state = parameters * (MASTER_BYTES + OPTIMIZER_BYTES[train.optimizer])
    wanted = sliders * slider + new_states * state
    free = shutil.disk_usage(_existing(settings.run_dir)).free
    if wanted > free:
        raise InputError(
            f"save.path: {save.path} has {_size(free)} free, but {sliders} slider(s) of {_size(slider)} and {new_states} state(s) "
            f"of {_size(state)} are to come: make room, choose another --save_path, or raise --per_steps."
        )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def out_of_memory(settings: Settings, parameters: int, said: str, peak: int, encoding: bool) -> str:
    """PyTorch's message `said`, and the peak in bytes → what happened, and the two settings that would help most."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", said)
    there = re.search(r"total capacity of ([\d.]+ \w+)", said)
    first, second = remedies(settings, parameters, encoding)
    return (
        f"--device: the GPU{f' of {there[1]}' if there else ''} has no memory left while {'encoding' if encoding else 'training'}: "
        f"{asked[1] if asked else 'some'} more was asked for after a peak of {_size(peak)}: set {first}, or {second}, and see that "
        "no other program uses the GPU."
    )


def remedies(settings: Settings, parameters: int, encoding: bool = False) -> list[str]:
    """The two settings, `key: value`, that would save most memory, the best first. While encoding only sizes count."""
    largest = max(settings.prompts, key=lambda p: p.resolution**2 * p.batch_size)
    smaller = largest.resolution * 3 // 4 // 32 * 32
    in_prompts = f"resolution: {smaller} in the prompts"
    if encoding:
        crops = [p for p in settings.prompts if p.dynamic_crops]
        return [in_prompts, "dynamic_crops: false" if crops else f"resolution: {largest.resolution // 2 // 32 * 32}"]
    activations = ACTIVATIONS * largest.resolution**2 / 2**20 * largest.batch_size
    checkpointing = settings.other.gradient_checkpointing
    now = activations * (CHECKPOINTED if checkpointing else 1)
    savings = {in_prompts: now * (1 - (smaller / largest.resolution) ** 2), "a smaller network.rank": parameters}
    if not checkpointing:
        savings["other.gradient_checkpointing: true"] = activations * (1 - CHECKPOINTED)
    if largest.batch_size > 1:
        half = largest.batch_size // 2
        savings[f"batch_size: {half} in the prompts"] = now * (1 - half / largest.batch_size)
    if settings.pretrained_model.quantize == "none":
        savings["pretrained_model.quantize: nf4"] = QUANTIZED_AWAY
    if OPTIMIZER_BYTES[settings.train.optimizer] > 2:
        savings["train.optimizer: adamw8bit"] = parameters * (OPTIMIZER_BYTES[settings.train.optimizer] - 2)
    return sorted(savings, key=savings.get, reverse=True)[:2]

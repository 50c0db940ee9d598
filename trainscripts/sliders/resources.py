"""Disk and GPU memory: what a run will need of the one, and what to do when the other is used up."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sliders.errors import InputError
from sliders.files import existing
from sliders.schema import LEAST_RESOLUTION, PromptSet, Settings
from sliders.states import states_of

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


@dataclass(frozen=True)
class DiskNeed:
    """What a run is still to write below `place`."""

    place: Path
    sliders: int
    slider: int  # bytes of one
    states: int
    state: int

    @property
    def bytes(self) -> int:
        return self.sliders * self.slider + self.states * self.state


def disk_need(settings: Settings, parameters: int, done: int = 0, states: int = 0) -> DiskNeed:
    """From step `done` on. parameters: of the adaptor. states: how many are there already, whose place new ones take."""
    save, train = settings.save, settings.train
    sliders = (train.iterations - 1) // save.per_steps - done // save.per_steps + 1
    new_states = max(1, min(sliders, save.keep + 1) - states)  # one more than is kept, until the oldest goes
    slider = parameters * WEIGHT_BYTES[save.precision]
    state = parameters * (MASTER_BYTES + OPTIMIZER_BYTES[train.optimizer])
    return DiskNeed(settings.run_dir, sliders, slider, new_states, state)


def check_disk(needs: Sequence[DiskNeed]) -> None:
    """Raises InputError if what one or several runs will write does not fit on the disks that they write to."""
    together: dict[int, list[DiskNeed]] = {}
    for need in needs:
        together.setdefault(existing(need.place).stat().st_dev, []).append(need)
    for disk in together.values():
        place, wanted = disk[0].place.parent, sum(need.bytes for need in disk)
        free = shutil.disk_usage(existing(place)).free
        if wanted > free:
            parts = (
                f"{sum(need.sliders for need in disk)} slider(s) of {_size(disk[0].slider)} and "
                f"{sum(need.states for need in disk)} state(s) of {_size(disk[0].state)}"
            )
            raise InputError(
                f"save.path: {place} has {_size(free)} free, but {parts} are to come: make room, choose another --save_path, or "
                "raise --per_steps."
            )


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


ENCODING, PLACING, TRAINING = "encoding", "placing the model there", "training"  # when memory may run out


@contextmanager
def during(phase: str) -> Iterator[None]:
    """An OutOfMemoryError that comes out of this block says when it came."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(phase)
        raise


def out_of_memory(settings: Settings, parameters: int, error: torch.OutOfMemoryError, peak: int) -> str:
    """PyTorch's error and the peak in bytes → what happened, and the two settings that would help most."""
    said, phase = str(error), getattr(error, "__notes__", [TRAINING])[0]
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", said)
    there = re.search(r"total capacity of ([\d.]+ \w+)", said)
    resumable = states_of(settings) and phase == TRAINING
    return (
        f"--device: the GPU{f' of {there[1]}' if there else ''} has no memory left while {phase}: "
        f"{asked[1] if asked else 'some'} more was asked for after a peak of {_size(peak)}: set "
        f"{', or '.join(remedies(settings, parameters, phase))}, and see that no other program uses the GPU"
        f"{'; with --resume only settings of `other` may change, any others begin a new run' if resumable else ''}."
    )


def remedies(settings: Settings, parameters: int, phase: str = TRAINING) -> list[str]:
    """The two settings, `key: value`, that would save most memory, the best first.

    While encoding only sizes count, and while the model is put on the GPU only weights do.
    """
    if phase == ENCODING:
        savings = _smaller_pictures(settings)
    elif phase == PLACING:
        savings = _lighter_weights(settings, parameters)
    else:
        savings = {**_lighter_weights(settings, parameters), **_smaller_steps(settings)}
        if OPTIMIZER_BYTES[settings.train.optimizer] > 2:
            savings["train.optimizer: adamw8bit"] = parameters * (OPTIMIZER_BYTES[settings.train.optimizer] - 2)
    return sorted(savings, key=savings.get, reverse=True)[:2]


def _largest(settings: Settings) -> PromptSet:
    return max(settings.prompts, key=lambda p: p.resolution**2 * p.batch_size)


def _smaller_pictures(settings: Settings) -> dict[str, float]:
    resolution = _largest(settings).resolution
    sizes = [max(LEAST_RESOLUTION, int(resolution * share) // 32 * 32) for share in (0.75, 0.5)]
    savings = {f"resolution: {size} in the prompts": float(size) for size in sizes if size < resolution}
    if any(p.dynamic_crops for p in settings.prompts):
        savings["dynamic_crops: false in the prompts"] = resolution * 0.7
    return savings or {"smaller images in the folders": 0.0}


def _lighter_weights(settings: Settings, parameters: int) -> dict[str, float]:
    savings: dict[str, float] = {"a smaller network.rank": parameters}
    if settings.pretrained_model.quantize == "none":
        savings["pretrained_model.quantize: nf4"] = QUANTIZED_AWAY
    return savings


def _smaller_steps(settings: Settings) -> dict[str, float]:
    largest = _largest(settings)
    activations = ACTIVATIONS * largest.resolution**2 / 2**20 * largest.batch_size
    checkpointing = settings.other.gradient_checkpointing
    now = activations * (CHECKPOINTED if checkpointing else 1)
    savings = {}
    smaller = largest.resolution * 3 // 4 // 32 * 32
    if smaller >= LEAST_RESOLUTION:
        savings[f"resolution: {smaller} in the prompts"] = now * (1 - (smaller / largest.resolution) ** 2)
    if not checkpointing:
        savings["other.gradient_checkpointing: true"] = activations * (1 - CHECKPOINTED)
    if largest.batch_size > 1:
        half = largest.batch_size // 2
        savings[f"batch_size: {half} in the prompts"] = now * (1 - half / largest.batch_size)
    return savings

"""Disk and GPU memory: what a run will need of the one, and what to do when the other runs out."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sliders.config.optimizers import OPTIMIZERS
from sliders.config.prompts import LEAST_RESOLUTION, PromptSet
from sliders.config.schema import Settings
from sliders.formats.checkpoint import checkpoints_of
from sliders.models import Family
from sliders.system.errors import InputError
from sliders.system.files import existing
from sliders.train.memory import BYTES, FULL

MASTER_BYTES = 4
MANY_PIXELS = 2**19  # in a step's images of one scale: from here on activations need more memory than weights


@dataclass(frozen=True)
class DiskNeed:
    """What a run is still to write below `place`."""

    place: Path
    sliders: int
    slider: int  # bytes of one
    checkpoints: int
    checkpoint: int  # bytes of one

    @property
    def bytes(self) -> int:
        return self.sliders * self.slider + self.checkpoints * self.checkpoint


def disk_need(settings: Settings, parameters: int, done: int = 0, checkpoints: int = 0) -> DiskNeed:
    """From step `done` on. parameters: of the adaptors. checkpoints: how many exist, which new ones replace."""
    save, train = settings.save, settings.train
    sliders = (train.iterations - 1) // save.per_steps - done // save.per_steps + 1
    new_checkpoints = max(1, min(sliders, save.keep + 1) - checkpoints)  # one more than is kept, until the oldest goes
    slider = parameters * BYTES[save.precision]
    checkpoint = parameters * (MASTER_BYTES + OPTIMIZERS[train.optimizer].state_bytes)
    return DiskNeed(settings.run_dir, sliders, slider, new_checkpoints, checkpoint)


def check_disk(needs: Sequence[DiskNeed]) -> None:
    """Raises InputError if what the runs will write together does not fit on the disks that they write to."""
    by_disk: dict[int, list[DiskNeed]] = {}
    for need in needs:
        by_disk.setdefault(existing(need.place).stat().st_dev, []).append(need)
    for disk in by_disk.values():
        place, wanted = disk[0].place.parent, sum(need.bytes for need in disk)
        free = shutil.disk_usage(existing(place)).free
        if wanted > free:
            raise InputError(
                f"save.path: {place} has {_size(free)} free, but {sum(n.sliders for n in disk)} slider(s) of "
                f"{_size(disk[0].slider)} and {sum(n.checkpoints for n in disk)} checkpoint(s) of {_size(disk[0].checkpoint)} "
                "are to come: make room, choose another --save_path, or raise --per_steps."
            )


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


ENCODING, PLACING, TRAINING = "encoding", "moving the model there", "training"  # when memory may run out


@contextmanager
def during(phase: str) -> Iterator[None]:
    """An OutOfMemoryError that leaves this block carries the phase as a note."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(phase)
        raise


def out_of_memory(settings: Settings, family: Family, error: torch.OutOfMemoryError, peak: int) -> str:
    """One sentence: what ran out, and the two settings that help most. peak: bytes allocated at most."""
    text, phase = str(error), getattr(error, "__notes__", [TRAINING])[0]
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    capacity = re.search(r"total capacity of ([\d.]+ \w+)", text)
    resumable = checkpoints_of(settings) and phase == TRAINING
    return (
        f"--device: the GPU{f' of {capacity[1]}' if capacity else ''} ran out of memory while {phase}: "
        f"{asked[1] if asked else 'some'} more was needed after a peak of {_size(peak)}: set "
        f"{', or '.join(remedies(settings, family, phase)[:2])}, and check that no other program uses the GPU"
        f"{'; with --resume only settings of `other` may change, any others begin a new run' if resumable else ''}."
    )


def _largest(settings: Settings) -> PromptSet:
    return max(settings.prompts, key=lambda p: p.resolution**2 * p.batch_size)


def smaller_images(settings: Settings, family: Family) -> list[str]:
    """`key: value` of smaller resolutions than the largest, the larger first."""
    largest, multiple = _largest(settings).resolution, family.facts.size_multiple
    sizes = [max(LEAST_RESOLUTION, int(largest * share) // multiple * multiple) for share in (0.75, 0.5)]
    return [f"resolution: {size} in the prompts" for size in dict.fromkeys(sizes) if size < largest]


def nearly_full(settings: Settings, family: Family, card: tuple[int, int]) -> str | None:
    """A sentence if nearly all of a GPU's memory is used, by whatever program. card: (free, total) bytes."""
    free, total = card
    if total - free <= FULL * total:
        return None
    return (
        f"{1 - free / total:.0%} of the GPU's memory is used. Windows moves what no longer fits to main memory without an "
        "error, and steps then take many times as long; elsewhere the run may run out of memory: close other programs, or set "
        f"{', or '.join(remedies(settings, family)[:2])}."
    )


def remedies(settings: Settings, family: Family, phase: str = TRAINING) -> list[str]:
    """`key: value` that would save memory, the most effective first."""
    largest, smaller = _largest(settings), smaller_images(settings, family)
    lighter = ["pretrained_model.quantize: nf4"] if settings.pretrained_model.quantize == "none" else []
    if phase == ENCODING:
        return smaller or ["smaller images in the folders"]
    if phase == PLACING:
        return [*lighter, "a smaller network.rank"]
    rows = []
    if not settings.other.gradient_checkpointing:
        rows.append("other.gradient_checkpointing: true")
    if largest.batch_size > 1:
        rows.append(f"batch_size: {largest.batch_size // 2} in the prompts")
    if OPTIMIZERS[settings.train.optimizer].state_bytes > 2:
        lighter.append("train.optimizer: adamw8bit")
    many = largest.resolution**2 * largest.batch_size >= MANY_PIXELS
    return [*(rows + lighter if many else lighter + rows), *smaller, "a smaller network.rank"]

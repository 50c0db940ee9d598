"""Checkpoints of a run: everything that its next step depends on, in files with a checksum.

A file consists of `MAGIC`, the SHA-256 of all that follows, the header's length (eight bytes, little-endian), the header
as JSON, and the tensors as `torch.save` writes them. They are loaded with `weights_only`, so no code in them is run.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sliders import __version__
from sliders.config.migration import ADDED_TO_NETWORK
from sliders.config.schema import Settings
from sliders.data.contract import Checked
from sliders.formats.metadata import model_name
from sliders.formats.model_loras import ModelLoRA
from sliders.formats.slider_file import not_finite
from sliders.system.errors import InputError
from sliders.system.files import SAME_NAME, atomic_write, remove

MAGIC = b"sliders state 1\n"
DIGEST, LENGTH = hashlib.sha256().digest_size, 8  # bytes
SUFFIX = ".state"
# Keys of train that may change when a run is resumed: its length, and what NonFiniteError suggests changing. The sections
# save, preview, logging and other may change too, and so may the device.
MAY_CHANGE = {"iterations", "lr", "max_grad_norm", "precision", "skip_nonfinite"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file whose checksum is correct."""

    path: Path
    header: dict  # as passed to `write_checkpoint`, and `version`
    start: int  # of the tensors, in bytes

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return self.header["step"]

    def tensors(self) -> dict:
        """Reads the tensors that were passed to `write_checkpoint`, on the CPU."""
        raw = memoryview(self.path.read_bytes())[self.start :]
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)

    def check_values(self) -> None:
        """Raises InputError if a weight, or what the optimizer knows of it, is NaN or infinite."""
        if key := not_finite(_tensors_in(self.tensors())):
            raise InputError(
                f"--resume: {self.path} contains NaN or infinite values in {key}, from which no step can follow: remove it to "
                "continue from the checkpoint before it, with a lower train.lr, or start again with --overwrite instead of --resume."
            )


def _tensors_in(nested: dict, place: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _tensors_in(value, f"{place}{key}.")
        elif isinstance(value, Tensor):
            yield f"{place}{key}", value


def checkpoint_path(settings: Settings, step: int) -> Path:
    return settings.run_dir / f"{settings.stem}_{step}steps{SUFFIX}"


def write_checkpoint(path: Path, header: dict, tensors: dict) -> None:
    """header: JSON values, including `step`. tensors: nested dicts of tensors and numbers. Raises OSError."""
    content, text = io.BytesIO(), json.dumps({**header, "version": __version__}).encode()
    content.write(len(text).to_bytes(LENGTH, "little") + text)
    torch.save(tensors, content)  # in memory: on a full disk, torch would not raise OSError
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Returns None if the file is damaged. Raises OSError."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return None
        digest = file.read(DIGEST)
        if hashlib.file_digest(file, "sha256").digest() != digest:
            return None
        file.seek(len(MAGIC) + DIGEST)
        header = file.read(int.from_bytes(file.read(LENGTH), "little"))
        return Checkpoint(path, json.loads(header), file.tell())


def checkpoints_of(settings: Settings) -> dict[int, Path]:
    """{step: path} of the run's checkpoints, damaged ones included, newest first."""
    if not settings.run_dir.is_dir():
        return {}
    pattern = re.compile(re.escape(settings.stem) + r"_(\d{1,18})steps" + re.escape(SUFFIX), SAME_NAME)
    found = {int(m[1]): p for p in settings.run_dir.iterdir() if (m := pattern.fullmatch(p.name))}
    return dict(sorted(found.items(), reverse=True))


def newest_checkpoint(settings: Settings) -> tuple[Checkpoint | None, list[Path]]:
    """Returns the run's newest undamaged checkpoint, or None if there are no checkpoints, and the damaged newer ones.

    Raises InputError if all checkpoints are damaged.
    """
    damaged = []
    for path in checkpoints_of(settings).values():
        checkpoint = read_checkpoint(path)
        if checkpoint is not None:
            return checkpoint, damaged
        damaged.append(path)
    if damaged:
        raise InputError(
            f"--resume: {', '.join(map(str, damaged))} {'is' if len(damaged) == 1 else 'are'} damaged and there is no other "
            "checkpoint: start again with --overwrite instead of --resume."
        )
    return None, []


def prune_checkpoints(settings: Settings, step: int) -> None:
    """Removes all but the `save.keep` newest checkpoints up to `step`.

    Later ones go too: they are damaged, or the run would have resumed from them.
    """
    checkpoints = checkpoints_of(settings)
    kept = [s for s in checkpoints if s <= step][: settings.save.keep]
    for other in checkpoints.keys() - set(kept):
        remove(checkpoints[other])


def identity(settings: Settings, data: Checked, loras: Sequence[ModelLoRA] = ()) -> dict:
    """Everything that must not change when a run is resumed, as JSON values. loras: that became part of the model."""
    found = {
        "pretrained_model": {
            **settings.pretrained_model.model_dump(mode="json", exclude={"config", "loras"}),
            "name_or_path": model_name(settings),
            **(
                {"loras": [lora.identity for lora in loras]} if loras else {}
            ),  # checkpoints of earlier versions lack it
        },
        "network": settings.network.model_dump(
            mode="json", exclude={k for k in ADDED_TO_NETWORK if not getattr(settings.network, k)}
        ),
        "train": settings.train.model_dump(mode="json", exclude=MAY_CHANGE),
        "prompts": [p.model_dump(mode="json") for p in settings.prompts],
        **data.identity(),
    }
    return json.loads(json.dumps(found))


def changeable(settings: Settings) -> dict:
    """The keys of train that may change when a run is resumed, as JSON values."""
    return settings.train.model_dump(mode="json", include=MAY_CHANGE)


def first_difference(then, now, place: str = "") -> str | None:
    """Describes the first difference between JSON values, as `network.rank was 4 and is now 8`. None if they are equal."""
    if isinstance(then, dict) and isinstance(now, dict):
        pairs = [(f"{place}.{k}" if place else k, then.get(k), now.get(k)) for k in sorted(then.keys() | now.keys())]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = [(f"{place} {i}", *both) for i, both in enumerate(zip(then, now, strict=True), start=1)]
    else:
        return None if then == now else f"{place} was {_shown(then)} and is now {_shown(now)}"
    return next((d for key, *both in pairs if (d := first_difference(*both, key))), None)


def _shown(value) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


def check_same_run(checkpoint: Checkpoint, now: dict) -> None:
    """Raises InputError, naming the first difference, if the run's identity `now` is not the checkpoint's."""
    difference = first_difference(checkpoint.header["run"], now)
    if difference:
        raise InputError(
            f"--resume: {difference}, so {checkpoint.path.name} cannot be resumed: change it back, or start again with "
            "--overwrite instead of --resume."
        )

"""Resumable states of a run: all that its next step depends on, in files that are checked before they are believed.

A file is `MAGIC`, the sha256 of all that follows, the header's length in eight bytes, the header as JSON, and tensors
as torch saves them, which are only ever read back as weights: nothing in them is run.
"""

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from sliders import __version__
from sliders.config.schema import Settings
from sliders.data.dataset import ScaleFolders
from sliders.system.errors import InputError
from sliders.system.files import SAME_NAME, remove, written_whole

MAGIC = b"sliders state 1\n"
DIGEST, LENGTH = hashlib.sha256().digest_size, 8  # bytes
SUFFIX = ".state"
# What may differ from the run that a state is of, besides save, preview, logging, other and the device: how far to go,
# and what the advice after a non-finite loss names.
MAY_CHANGE = {"iterations", "lr", "max_grad_norm", "precision", "skip_nonfinite"}


@dataclass(frozen=True)
class Checkpoint:
    """A state that is whole."""

    path: Path
    header: dict

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.header["step"]

    def tensors(self) -> dict:
        """What `write_checkpoint` was given, on the CPU."""
        raw = memoryview(self.path.read_bytes())
        start = len(MAGIC) + DIGEST
        start += LENGTH + int.from_bytes(raw[start : start + LENGTH], "little")
        return torch.load(io.BytesIO(raw[start:]), map_location="cpu", weights_only=True)


def checkpoint_path(settings: Settings, step: int) -> Path:
    return settings.run_dir / f"{settings.stem}_{step}steps{SUFFIX}"


def write_checkpoint(path: Path, header: dict, tensors: dict) -> None:
    """header: JSON values, `step` among them. tensors: nested dicts of tensors and numbers. Raises OSError."""
    content, text = io.BytesIO(), json.dumps({**header, "version": __version__}).encode()
    content.write(len(text).to_bytes(LENGTH, "little") + text)
    torch.save(tensors, content)  # to memory, for torch tells of a full disk in ways of its own
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def read_checkpoint(path: Path) -> Checkpoint | None:
    """None if any byte is not what was written."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return None
        digest = file.read(DIGEST)
        if hashlib.file_digest(file, "sha256").digest() != digest:
            return None
        file.seek(len(MAGIC) + DIGEST)
        return Checkpoint(path, json.loads(file.read(int.from_bytes(file.read(LENGTH), "little"))))


def checkpoints_of(settings: Settings) -> dict[int, Path]:
    """{step: path} of the run's states, whole or not, the newest first."""
    if not settings.run_dir.is_dir():
        return {}
    pattern = re.compile(re.escape(settings.stem) + r"_(\d{1,18})steps" + re.escape(SUFFIX), SAME_NAME)
    found = {int(m[1]): p for p in settings.run_dir.iterdir() if (m := pattern.fullmatch(p.name))}
    return dict(sorted(found.items(), reverse=True))


def newest_checkpoint(settings: Settings) -> tuple[Checkpoint | None, list[Path]]:
    """The newest whole state of the run, if there is any state, and damaged ones that are newer.

    Raises InputError if there are states and all are damaged.
    """
    damaged = []
    for path in checkpoints_of(settings).values():
        state = read_checkpoint(path)
        if state is not None:
            return state, damaged
        damaged.append(path)
    if damaged:
        raise InputError(
            f"--resume: {', '.join(str(p) for p in damaged)} {'is' if len(damaged) == 1 else 'are'} damaged and no other "
            "state is there: start anew with --overwrite in place of --resume."
        )
    return None, []


def prune_checkpoints(settings: Settings, step: int) -> None:
    """Keep the `save.keep` newest up to `step`. One beyond it was damaged, or this run would have begun there."""
    states = checkpoints_of(settings)
    kept = [s for s in states if s <= step][: settings.save.keep]
    for other in states.keys() - set(kept):
        remove(states[other])


def identity(settings: Settings, data: ScaleFolders) -> dict:
    """What makes a run this one, as JSON holds it. Images count by content, so a data set may move."""
    name = settings.pretrained_model.name_or_path
    found = {
        "pretrained_model": {
            **settings.pretrained_model.model_dump(mode="json", exclude={"config"}),
            "name_or_path": Path(name).name if Path(name).exists() else name,
        },
        "network": settings.network.model_dump(mode="json"),
        "train": settings.train.model_dump(mode="json", exclude=MAY_CHANGE),
        "prompts": [p.model_dump(mode="json") for p in settings.prompts],
        "scales": data.scales,
        "images": data.digests,
    }
    return json.loads(json.dumps(found))


def changeable(settings: Settings) -> dict:
    return settings.train.model_dump(mode="json", include=MAY_CHANGE)


def first_difference(then, now, place: str = "") -> str | None:
    """`network.rank was 4 and is now 8`, or None."""
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


def check_same_run(state: Checkpoint, now: dict) -> None:
    """Raises InputError with the first thing in which `identity` differs from the state's."""
    difference = first_difference(state.header["run"], now)
    if difference:
        raise InputError(
            f"--resume: {difference}, so {state.path.name} cannot be continued: change it back, or start anew with "
            "--overwrite in place of --resume."
        )

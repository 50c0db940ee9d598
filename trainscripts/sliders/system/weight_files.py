"""Files of weights: what they contain is told by their content, not by their suffix. Headers are read, weights only when asked for.

Each function takes a place, the beginning of the sentence if a file is refused: `pretrained_model.name_or_path: PATH`, or `PATH:`.
"""

import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sliders.system.errors import InputError, cannot_be_read, first_line

DTYPES = {  # names in .safetensors files
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
PICKLE, ZIP, GGUF = b"\x80", b"PK\x03\x04", b"GGUF"
LARGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
AGAIN = "download it again"
CONVERT = "use a .safetensors file"


@dataclass(frozen=True)
class Stored:
    """A weight in a file. dtype: torch's, or the file's name for one that torch does not have."""

    dtype: torch.dtype | str
    shape: tuple[int, ...]


class WeightFile:
    """The keys of a file with dtypes and shapes, its metadata, and on request its weights."""

    def __init__(
        self, path: Path, stored: dict[str, Stored], metadata: dict[str, str],
        read: Callable[[Iterable[str]], dict[str, Tensor]], mapped: bool,
    ):  # fmt: skip
        """mapped: whether the weights that `read` returns are pages of the file, which need no memory of their own."""
        self.path, self.stored, self.metadata, self.read, self.mapped = path, stored, metadata, read, mapped


def open_weights(path: Path, place: str) -> WeightFile:
    """Opens a .safetensors file or a pickle of torch's, whatever its name is. Code in a pickle is not run.

    Raises InputError with the reason for everything else: what cannot be read, is cut off, padded or of another format.
    """
    check_readable(path, place)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{place} {cannot_be_read(error)}.") from error
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER:
        return _safetensors_file(path, place, size)  # asked first: the length of its header may begin like a pickle
    if start.startswith(ZIP) or start[:1] == PICKLE:
        return _torch_file(path, place)
    raise InputError(f"{place} {_other_content(path, start)}.")


def check_readable(path: Path, place: str) -> None:
    """Raises InputError with the system's reason unless `path`, links followed, is a file that can be opened."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise InputError(f"{place} is a folder, not a file: check the path.")
        if not stat.S_ISREG(kind):
            raise InputError(f"{place} is a pipe or a device, not a file: check the path.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{place} {why_unreadable(path, error)}.") from error


def why_unreadable(path: Path, error: OSError) -> str:
    """`cannot be read (reason): check …`; for a link also where it points to."""
    if is_link(path):
        target = path.readlink()
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror or first_line(error)
        return f"is a link to {target}, which cannot be read ({reason}): mend the link, or name the file itself"
    if isinstance(error, FileNotFoundError):
        return "does not exist: check the path"
    return cannot_be_read(error)


def is_link(path: Path) -> bool:
    """False also where the system does not say."""
    return os.path.islink(path)  # noqa: PTH114 - that of pathlib raises if a folder above cannot be read


def _other_content(path: Path, start: bytes) -> str:
    """What a file is that holds no weights we read, and the remedy."""
    if not start:
        return f"is empty: {AGAIN}"
    if start.startswith(GGUF):
        return f"is a GGUF file, whose quantised weights are not supported: {CONVERT} with weights of 16 or 32 bits"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder"
    if start.lstrip()[:1] == b"<":
        return f"is a web page, not a file of weights: {AGAIN}, logged in if the site asks for it"
    if path.suffix.lower() in (".safetensors", ".sft"):
        return f"is not a .safetensors file, its beginning is damaged: {AGAIN}"
    return f"is neither a .safetensors file nor a checkpoint of torch's: choose another file, or {AGAIN}"


def _safetensors_file(path: Path, place: str, size: int) -> WeightFile:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    if len(header) < length:
        raise InputError(f"{place} is cut off within its header: {AGAIN}.")
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", None) or {}
        stored = {k: Stored(DTYPES.get(v["dtype"], v["dtype"]), tuple(v["shape"])) for k, v in entries.items()}
        spans = sorted(tuple(v["data_offsets"]) for v in entries.values())
        needed = 8 + length + max((end for _, end in spans), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place} has a damaged header: {AGAIN}.") from error
    if size < needed:
        raise InputError(f"{place} is not complete, it lacks {needed - size:,} of {needed:,} bytes: {AGAIN}.")
    if size > needed:
        raise InputError(
            f"{place} has {size - needed:,} bytes too many after its last weight: cut them off with "
            f"`truncate -s {needed} FILE`, or {AGAIN}."
        )

    def read(keys: Iterable[str]) -> dict[str, Tensor]:
        with safe_open(
            path, framework="pt"
        ) as file:  # each a mapping of its own, whose pages can go before others come
            return {key: file.get_tensor(key) for key in keys}

    try:
        read(())
    except Exception as error:  # the library's checks of the header
        raise InputError(f"{place} has a damaged header ({first_line(error)}): {AGAIN}.") from error
    return WeightFile(path, stored, {k: str(v) for k, v in metadata.items()}, read, mapped=True)


def _torch_file(path: Path, place: str) -> WeightFile:
    """Read with torch's weights-only unpickler. Mapping avoids reading the weights; it needs the zip format and a path."""
    zipped = zipfile.is_zipfile(path)
    try:
        if path.suffix.lower() == ".safetensors":  # torch would take a path of this name for what it says
            with path.open("rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        while isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
    except Exception as error:  # unpickling untrusted bytes can raise nearly anything
        raise InputError(f"{place} {_why_not_unpickled(path, zipped)}.") from error
    tensors = {str(k): v.detach() for k, v in state.items() if isinstance(v, Tensor)}
    stored = {k: Stored(v.dtype, tuple(v.shape)) for k, v in tensors.items()}
    return WeightFile(path, stored, {}, lambda keys: {k: tensors[k] for k in keys}, mapped=False)


def _why_not_unpickled(path: Path, zipped: bool) -> str:
    names: list[str] = []
    if zipped:
        try:
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:  # as above
            names = []
    if names:
        return f"contains more than weights ({', '.join(names[:3])}), which may be code and is never run: {CONVERT}"
    return f"is damaged, or contains code, which is never run: {AGAIN}, or {CONVERT}"

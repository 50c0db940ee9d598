"""Files of weights: what they contain is told by their content, not by their suffix. Headers are read, weights only when asked for.

Each function takes a place, the beginning of the sentence if a file is refused: `pretrained_model.name_or_path: PATH`, or `PATH:`.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from sliders.system.errors import InputError, first_line
from sliders.system.files import readable

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


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What is in a file without its weights, and how to read those."""

    path: Path
    stored: dict[str, Stored]
    metadata: dict[str, str]
    read: Callable[[Iterable[str]], dict[str, Tensor]]
    mapped: bool  # whether the weights that `read` returns are pages of the file, which need no memory of their own

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: stored.shape for key, stored in self.stored.items()}

    def read_all(self) -> dict[str, Tensor]:
        """For small files: in memory of its own, because Windows could not replace a mapped file (not verified there)."""
        return {key: tensor.clone() for key, tensor in self.read(self.stored).items()}


def open_weights(path: Path, place: str) -> WeightFile:
    """Opens a .safetensors file or a pickle of torch's, whatever its name is. Code in a pickle is not run.

    Raises InputError with the reason for everything else: what cannot be read, is cut off or of another format.
    """
    with readable(path, place) as file:
        start = file.read(512)
        # first, because the length that it begins with may look like the others' first bytes
        if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER:
            return _safetensors_file(path, file, place)
    if start.startswith(ZIP) or start[:1] == PICKLE:
        return _torch_file(path, place)
    raise InputError(f"{place} {_other_content(path, start)}.")


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


def _safetensors_file(path: Path, file: BinaryIO, place: str) -> WeightFile:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
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

    def read(keys: Iterable[str]) -> dict[str, Tensor]:
        if size > needed:  # some programs fill up the last block, which the library refuses
            whole = load(path.read_bytes()[:needed])
            return {key: whole[key] for key in keys}
        # each a mapping of its own, whose pages can go before others come
        with safe_open(path, framework="pt") as mapping:
            return {key: mapping.get_tensor(key) for key in keys}

    try:
        if size == needed:
            read(())
    except Exception as error:  # the library's checks of the header
        raise InputError(f"{place} has a damaged header ({first_line(error)}): {AGAIN}.") from error
    return WeightFile(path, stored, {k: str(v) for k, v in metadata.items()}, read, mapped=size == needed)


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
    numbers = {k: torch.tensor(v) for k, v in state.items() if str(k).endswith(".alpha") and isinstance(v, int | float)}
    tensors = {str(k): v.detach() for k, v in {**state, **numbers}.items() if isinstance(v, Tensor)}
    stored = {k: Stored(v.dtype, tuple(v.shape)) for k, v in tensors.items()}
    return WeightFile(path, stored, {}, lambda keys: {k: tensors[k] for k in keys}, mapped=False)


def _why_not_unpickled(path: Path, zipped: bool) -> str:
    with suppress(Exception):  # as above
        if zipped and (names := sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))):
            return f"contains more than weights ({', '.join(names[:3])}), which may be code and is never run: {CONVERT}"
    return f"is damaged, or contains code, which is never run: {AGAIN}, or {CONVERT}"

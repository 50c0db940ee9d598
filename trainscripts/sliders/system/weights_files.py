"""Files of weights: which format they have, by their content and not by their name, and what is in them."""

import json
import stat
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from sliders.system.errors import InputError, cannot_be_read

LENGTH = 8  # bytes of the header's length, little-endian, at the start of a .safetensors file
LONGEST_HEADER = 100_000_000  # bytes, in the library
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Header:
    """What a .safetensors file says at its start."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    end: int  # bytes up to the end of the tensors; what follows is padding


def open_error(path: Path, error: OSError) -> str:
    """`cannot be read (reason): check …`, also for links that lead nowhere."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"cannot be read (a link to {path.readlink()}, which does not exist): check where it leads"
    return cannot_be_read(error)


def read_header(path: Path) -> Header | None:
    """None if the content is not that of a .safetensors file. Raises InputError if it cannot be read or is cut short."""
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):
            raise InputError(f"{path}: is {'a folder' if path.is_dir() else 'not a file'}: give a file of weights.")
        with path.open("rb") as file:
            start = file.read(LENGTH + 1)
            length = int.from_bytes(start[:LENGTH], "little")
            text = start[LENGTH:] + file.read(length - 1 if 2 <= length <= LONGEST_HEADER else len(LFS))
    except OSError as error:
        raise InputError(f"{path}: {open_error(path, error)}.") from error
    if (start[:LENGTH] + text).startswith(LFS):
        raise InputError(f"{path}: is only Git LFS' pointer to the file: fetch the file itself with git lfs pull.")
    if not kind.st_size:
        raise InputError(f"{path}: is empty: download it again.")
    if not text.startswith(b"{") or not 2 <= length <= LONGEST_HEADER:
        return None
    try:
        header = _parsed(text, LENGTH + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(_incomplete(path)) from error
    if header.end > kind.st_size:
        raise InputError(_incomplete(path))
    return header


def _parsed(text: bytes, start: int) -> Header:
    content = json.loads(text)
    metadata = content.pop("__metadata__", {})
    end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
    return Header(dict(metadata), {key: tuple(entry["shape"]) for key, entry in content.items()}, start + end)


def _incomplete(path: Path) -> str:
    return f"{path}: is not a complete .safetensors file: download it again."


def read_safetensors(path: Path, header: Header) -> dict[str, Tensor]:
    """{key: tensor}, whatever follows them: some programs pad files. Not mapped: Windows could not replace the file.

    Raises InputError. (Not verified on Windows.)
    """
    if not header.shapes:
        return {}  # the library would take the file for damaged
    try:
        return load(path.read_bytes()[: header.end])
    except OSError as error:
        raise InputError(f"{path}: {open_error(path, error)}.") from error
    except SafetensorError as error:
        raise InputError(_incomplete(path)) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """{key: tensor} and metadata of a .safetensors file, or of a pickle, which torch reads without running code in it.

    The name of the file does not matter. Raises InputError.
    """
    header = read_header(path)
    if header is not None:
        return read_safetensors(path, header), header.metadata
    if path.suffix.lower() == ".safetensors" and not _may_be_pickled(path):
        raise InputError(_incomplete(path))
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found)
        tensors = {str(key): torch.as_tensor(value).detach().contiguous() for key, value in found.items()}
    except OSError as error:
        raise InputError(f"{path}: {open_error(path, error)}.") from error
    except Exception as error:  # unpickling untrusted bytes can raise nearly anything
        raise InputError(
            f"{path}: is damaged, or contains code, which is never run: get a file that contains weights alone."
        ) from error
    return tensors, {}


def _may_be_pickled(path: Path) -> bool:
    """As torch writes them since version 1.6, in a zip archive, or before, as a pickle of protocol 2."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))

"""Encoded prompts of earlier runs, in a folder of the user's: the same prompt is not encoded twice by an equal text encoder.

A file is `MAGIC`, the SHA-256 of all that follows, and the embeddings in the .safetensors format. What decides the embeddings
is hashed into its name. Prompts themselves are not stored.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sliders.system.files import atomic_write, remove

FOLDER = "SLIDERS_CACHE"  # environment variable: another folder, or empty for none
MAGIC = b"sliders prompt 1\n"
DIGEST = hashlib.sha256().digest_size  # bytes
LIMIT = 4 * 2**30  # bytes of all files together; those that were not used for longest go first
LEFT_FREE = 8 * 2**30  # bytes on the disk, which belong to the runs' own files
LIBRARIES = ("torch", "transformers", "diffusers")


def cache_folder() -> Path | None:
    """Where encoded prompts are kept, None for nowhere."""
    chosen = os.environ.get(FOLDER)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        return None
    usual = {
        "win32": os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local",
        "darwin": home / "Library" / "Caches",
    }
    return Path(usual.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fractional-sliders"


def cache_key(encoder: str, tokens: Sequence[int], *facts: str) -> str:
    """Of all that decides what a prompt is encoded to: the encoder's weights, its tokens in their template, and other facts."""
    known = [encoder, list(tokens), *facts, *(version(name) for name in LIBRARIES)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


class PromptCache:
    """Files in a folder. What cannot be read, or is damaged, is as if it were not there; a note says so."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._used: set[Path] = set()  # by this run

    def read(self, key: str) -> Tensor | None:
        """The embeddings of an earlier run, on the CPU."""
        if self._folder is None:
            return None
        path, start = self._path(key), len(MAGIC) + DIGEST
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._stop(f"{path.parent} cannot be read ({error.strerror})")
            return None
        found = None
        if content[:start] == MAGIC + hashlib.sha256(content[start:]).digest():
            with suppress(SafetensorError, KeyError):
                found = load(content[start:])["tokens"]
        if found is None:
            print(f"note: {path} is damaged or of another program: its prompt is encoded again.")
            return None
        self._used.add(path)
        with suppress(OSError):
            os.utime(path)  # it stays longer than what is not used
        return found

    def write(self, key: str, tokens: Tensor) -> None:
        """tokens: on any device. A failure is a note, because the run does not need the file."""
        if self._folder is None:
            return
        path = self._path(key)
        content = save({"tokens": tokens.detach().cpu().contiguous()})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._make_room(len(content)):
                self._stop(f"{path.parent} has no room for more encoded prompts")
                return
            with atomic_write(path, shared=True) as temporary:
                temporary.write_bytes(MAGIC + hashlib.sha256(content).digest() + content)
            self._used.add(path)
        except OSError as error:
            self._stop(f"{path.parent} cannot be written to ({error.strerror})")

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.prompt"

    def _make_room(self, size: int) -> bool:
        """Removes the files that were not used for longest. Returns whether there is room, within LIMIT and on the disk."""
        files = {path: path.stat() for path in self._folder.iterdir() if path.is_file()}
        excess = sum(stat.st_size for stat in files.values()) + size - LIMIT
        for path, stat in sorted(files.items(), key=lambda item: item[1].st_mtime):
            if excess > 0 and path not in self._used:
                remove(path)
                excess -= stat.st_size
        return excess <= 0 and shutil.disk_usage(self._folder).free - size >= LEFT_FREE

    def _stop(self, reason: str) -> None:
        print(
            f"note: {reason}, so the next run encodes prompts again: make room, or choose another folder with {FOLDER}."
        )
        self._folder = None

"""The emoji pictures: of each name a flat drawing and a rendered one, some of them in five skin tones, read from one archive.

The archive is a zip of `names.json`, a list of {"name", "mirror", "codes"}, and `flat/CODE.webp` and `3d/CODE.webp`: RGBA
pictures of SPRITE × SPRITE px. All pictures of a name are cropped alike, so that they cover each other.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sliders.system.errors import InputError
from torch import Tensor

PICTURES = Path(__file__).parent / "pictures.zip"
SPRITE = 96  # px, the side of a stored picture
STYLES = ("flat", "3d")
TONES = 5
HELD_OUT_SHARE = 0.25  # of the names, by hash: never in the folders that a slider is trained on
CHANNELS = 4  # red, green and blue, each times alpha, and alpha


@dataclass(frozen=True)
class Pictures:
    """All pictures on one device, and what is known of each name."""

    names: tuple[str, ...]
    mirrored: Tensor  # [names] bool: whether a mirror image still shows what the name says
    toned: Tensor  # [names] bool: whether there are five skin tones
    sprites: Tensor  # [pictures, 4, SPRITE, SPRITE] uint8, premultiplied
    index: Tensor  # [names, styles, tones] int64 into `sprites`; a name without tones has one picture for all five
    frame: Tensor  # [names, 3] fp32: centre x and y and long side of what is opaque, as shares of SPRITE

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> "Pictures":
        moved = (getattr(self, field).to(device) for field in ("mirrored", "toned", "sprites", "index", "frame"))
        return Pictures(self.names, *moved)

    def training_names(self, toned: bool = False) -> list[int]:
        """Indices of the names for a slider's folders; toned: only those with skin tones."""
        return self._chosen(False, toned)

    def held_out_names(self, toned: bool = False) -> list[int]:
        """Indices of the names for evaluation."""
        return self._chosen(True, toned)

    def _chosen(self, wanted: bool, toned: bool) -> list[int]:
        return [i for i, name in enumerate(self.names) if held_out(name) == wanted and (self.toned[i] or not toned)]


def held_out(name: str) -> bool:
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def load_pictures(path: Path = PICTURES) -> Pictures:
    """On the CPU. Raises InputError, with the remedy, if the archive is missing or is not one."""
    if not path.exists():
        raise InputError(
            f"{path}: the emoji pictures are not there: run `uv run --group emoji trainscripts/emojiworld/get_pictures.py`."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = json.loads(archive.read("names.json"))
            codes = [code for entry in entries for code in entry["codes"]]
            sprites = np.stack([_sprite(archive, f"{style}/{code}.webp") for code in codes for style in STYLES])
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: not an archive of emoji pictures ({error}): remove it and get it again.") from error
    place = {code: i for i, code in enumerate(codes)}
    index = torch.tensor(
        [
            [[len(STYLES) * place[code] + s for code in _five(entry["codes"])] for s in range(len(STYLES))]
            for entry in entries
        ]
    )
    tensor = torch.from_numpy(sprites)
    return Pictures(
        names=tuple(entry["name"] for entry in entries),
        mirrored=torch.tensor([entry["mirror"] for entry in entries]),
        toned=torch.tensor([len(entry["codes"]) == TONES for entry in entries]),
        sprites=tensor,
        index=index,
        frame=_frames(tensor, index),
    )


def _five(codes: list[str]) -> list[str]:
    return codes if len(codes) == TONES else codes * TONES


def _sprite(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """[4, SPRITE, SPRITE] uint8, premultiplied."""
    with Image.open(io.BytesIO(archive.read(name))) as image:
        pixels = np.asarray(image.convert("RGBA"), dtype=np.float32)
    if pixels.shape[:2] != (SPRITE, SPRITE):
        raise ValueError(f"{name} is not {SPRITE} × {SPRITE} px")
    alpha = pixels[..., 3:] / 255
    return (
        np.concatenate([pixels[..., :3] * alpha, pixels[..., 3:]], axis=2).round().astype(np.uint8).transpose(2, 0, 1)
    )


def _frames(sprites: Tensor, index: Tensor) -> Tensor:
    """[names, 3] fp32: centre and long side of what is opaque in any picture of a name, as shares of SPRITE."""
    opaque = torch.stack([(sprites[rows.flatten(), 3] > 127).any(0) for rows in index])
    left, right = _ends(opaque.any(1))
    top, bottom = _ends(opaque.any(2))
    sides = torch.maximum(right - left, bottom - top)
    return torch.stack([(left + right) / 2, (top + bottom) / 2, sides], dim=1) / SPRITE


def _ends(lines: Tensor) -> tuple[Tensor, Tensor]:
    """lines [N, L] bool → where the first true one begins and the last one ends, [N] fp32."""
    length = lines.shape[1]
    return lines.int().argmax(1).float(), length - lines.flip(1).int().argmax(1).float()


def write_archive(path: Path, entries: list[dict], pictures: dict[str, Image.Image]) -> None:
    """entries: as in `names.json`. pictures: {"style/CODE": RGBA picture}. The file is complete or not there."""
    whole = path.with_suffix(".tmp")
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("names.json", json.dumps(entries))
        for name, picture in pictures.items():
            encoded = io.BytesIO()
            picture.save(encoded, "WEBP", quality=80, alpha_quality=60, method=6)
            archive.writestr(f"{name}.webp", encoded.getvalue())
    whole.replace(path)

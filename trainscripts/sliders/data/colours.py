"""What the pixels of an image file mean → the same colours in sRGB, by the file's ICC profile or whatever else says it."""

import io
import struct
from contextlib import suppress
from enum import Enum
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

EXIF, INTEROP, COLOUR_SPACE = 0x8769, 0xA005, 0xA001  # where cameras say Adobe RGB instead of embedding a profile
SRGB_GAMMA, NEARLY = 0.45455, 0.005  # as programs write it into PNGs that are plain sRGB
SAME = 2  # levels of 255: a profile that changes no colour by more is one of the many spellings of sRGB
BASES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # colour space of a profile → mode that it reads
GREY = ("1", "L", "LA", "La")
D50, D65 = (0.3457, 0.3585), (0.3127, 0.3290)  # white points, x and y
PRIMARIES = {  # by code point of ITU-T H.273, as cICP and HEIC state them: x and y of red, green, blue
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
ADOBE_PRIMARIES = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
GAMMAS = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}  # of H.273; None: the curve of sRGB
UNSPECIFIED = 2  # of H.273
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


class Colours(Enum):
    """What became of an image's colours; the value ends a sentence about images."""

    KEPT = "are in sRGB"
    CONVERTED = "were converted to sRGB, as their colour profiles say"
    UNREADABLE = (
        "have a colour profile that cannot be read, so they are taken for sRGB: save them anew in sRGB if that is wrong"
    )
    NO_PROFILE = "are CMYK without a colour profile, so their colours are guessed: save them as RGB"


def profile_of(file: Image.Image) -> bytes | None:
    """The ICC profile of an opened file, or one made of what else it says of its colours. None: sRGB, or nothing said.

    Where several say it, the PNG standard's order counts: cICP, ICC profile, sRGB, gAMA and cHRM. Raises ValueError for
    what is said but cannot be understood.
    """
    codes = _cicp(file) if file.format == "PNG" else None
    if codes is not None:
        return _coded(*codes)
    if "icc_profile" in file.info:
        if not file.info["icc_profile"]:  # Pillow could not unpack it
            raise ValueError("a damaged profile")
        return file.info["icc_profile"]
    if nclx := file.info.get("nclx_profile"):
        return _coded(nclx.get("color_primaries"), nclx.get("transfer_characteristics"))
    if file.format == "PNG" and "srgb" not in file.info:
        return _from_gamma(file.info.get("gamma"), file.info.get("chromaticity"))
    with suppress(Exception):  # of damaged EXIF, which hurts no pixel
        exif = file.getexif()
        if exif.get_ifd(INTEROP).get(1) == "R03" or exif.get_ifd(EXIF).get(COLOUR_SPACE) == 2:
            return matrix_profile(D65, ADOBE_PRIMARIES, 563 / 256)
    return None


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, Colours]:
    """An image without transparency, of at most 8 bits → RGB in sRGB. Pixels that are in sRGB stay as they are."""
    if image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    if profile is None:
        return image.convert("RGB"), Colours.NO_PROFILE if image.mode == "CMYK" else Colours.KEPT
    try:
        base, transform = _transform(profile)
        own = "L" if image.mode in GREY else image.mode if image.mode in ("CMYK", "LAB") else "RGB"
        if base != own and (base, own) != ("RGB", "L"):  # Pillow keeps a profile when it turns a picture grey
            raise ValueError(f"a profile for {base}, but an image in {own}")
    except (OSError, ValueError, KeyError, ImageCms.PyCMSError):
        return image.convert("RGB"), Colours.UNREADABLE
    if transform is None:
        return image.convert("RGB"), Colours.KEPT
    converted, plain = transform.apply(image.convert(base)), image.convert("RGB")
    same = ImageChops.difference(converted, plain).getbbox() is None  # as greys are in most profiles
    return converted, Colours.KEPT if same else Colours.CONVERTED


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """(mode that the profile reads, transform from there to sRGB). None: nothing is to be done."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    base = BASES[opened.profile.xcolor_space.strip()]
    transform = ImageCms.buildTransform(
        opened, ImageCms.createProfile("sRGB"), base, "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    if base in ("CMYK", "LAB"):
        return base, transform
    levels = np.linspace(0, 255, 256 if base == "L" else 9).round().astype(np.uint8)
    colours = levels[None] if base == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    probe = Image.fromarray(colours)
    moved = np.asarray(transform.apply(probe), dtype=int) - np.asarray(probe.convert("RGB"), dtype=int)
    return base, None if np.abs(moved).max() <= SAME else transform


def _cicp(file: Image.Image) -> tuple[int, int] | None:
    """(primaries, transfer) of a PNG's cICP chunk, which Pillow passes over. It stands before the pixels."""
    place = file.fp.tell()
    try:
        file.fp.seek(8)
        while len(head := file.fp.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"cICP" and length == 4:
                return tuple(file.fp.read(2))
            if kind in (b"IDAT", b"IEND"):
                break
            file.fp.seek(length + 4, io.SEEK_CUR)
        return None
    finally:
        file.fp.seek(place)


def _coded(primaries: int, transfer: int) -> bytes | None:
    """The profile of a pair of code points of H.273. Raises ValueError for those that are not known, as of HDR."""
    primaries = 1 if primaries == UNSPECIFIED else primaries
    transfer = 13 if transfer == UNSPECIFIED else transfer
    if primaries not in PRIMARIES or transfer not in GAMMAS:
        raise ValueError("colours that have no profile here")
    return matrix_profile(D65, PRIMARIES[primaries], GAMMAS[transfer])


def _from_gamma(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """The profile of a PNG's gAMA and cHRM. gamma: exponent from light to pixel, usually below 1."""
    plain = gamma is None or abs(gamma - SRGB_GAMMA) <= NEARLY
    if plain and chromaticity is None:
        return None
    if not plain and gamma <= 0:
        raise ValueError(f"a gamma of {gamma}")
    white, *primaries = zip(*[iter(chromaticity)] * 2, strict=True) if chromaticity else (D65, *PRIMARIES[1])
    return matrix_profile(white, primaries, None if plain else 1 / gamma)


def matrix_profile(white: tuple[float, float], primaries, gamma: float | None) -> bytes:
    """The ICC profile of an RGB space. gamma: from pixel to light; None: the curve of sRGB.

    white, primaries: x and y; of red, green, blue. Raises ValueError if they span no colours.
    """
    try:
        columns = np.array([_xyz(xy) for xy in primaries]).T
        light = columns * np.linalg.solve(columns, _xyz(white))
        cone = BRADFORD @ _xyz(D50) / (BRADFORD @ _xyz(white))
        columns = np.linalg.inv(BRADFORD) @ np.diag(cone) @ BRADFORD @ light
        curve = (0, gamma) if gamma else (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        curve = struct.pack(">4sIHH", b"para", 0, curve[0], 0) + _fixed(curve[1:])
        tags = {b"wtpt": _place(_xyz(D50))}
        tags |= {name + b"XYZ": _place(column) for name, column in zip((b"r", b"g", b"b"), columns.T, strict=True)}
    except (ArithmeticError, np.linalg.LinAlgError, struct.error) as error:
        raise ValueError("chromaticities that span no colours") from error
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", start + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (head + _fixed(_xyz(D50))).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _xyz(xy: tuple[float, float]) -> np.ndarray:
    """Of x and y at luminance 1."""
    x, y = xy
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _place(xyz: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(xyz)


def _fixed(values) -> bytes:
    """Signed 16.16 fixed point, which is how ICC profiles write numbers."""
    return b"".join(struct.pack(">i", round(value * 65536)) for value in map(float, values))

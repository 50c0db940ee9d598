"""Image files of any kind that Pillow reads → upright RGB pictures in sRGB, resized without distortion."""

import importlib.util
import re
import unicodedata
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps

from sliders.data.colours import Colours, profile_of, to_srgb
from sliders.system.errors import InputError
from sliders.system.files import why_not_read
from sliders.system.installation import how_to_install

WHITE = (255, 255, 255)
MOST_PIXELS = 250_000_000  # one copy in memory is 0.75 GB; phones take up to 200 million
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
SAVE_ANEW = "save it anew, for example as PNG"
NO_PIXELS = {".eps", ".ps", ".wmf", ".emf", ".mpg", ".mpeg"}  # drawings and films, whose names Pillow knows

Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # from here on Pillow warns, which `read_picture` turns into an error


@dataclass(frozen=True)
class Picture:
    image: Image.Image  # upright 8-bit RGB
    colours: Colours


class UnreadableImageError(InputError):
    """An image file that cannot be read. `why`: the message without the path, the same for files of the same trouble."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"{path}: {why}.")
        self.why = why


def is_image_name(path: Path) -> bool:
    """True for an extension that Pillow reads, in any letter case; hidden files (`.DS_Store`, `._x.png`) are not images.

    True for HEIC too, also where the package that reads it is missing: such a file is an image that is to be missed.
    """
    return path.suffix.lower() in _image_suffixes() and not path.name.startswith(".")


@cache
def _image_suffixes() -> frozenset[str]:
    readable = {ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(readable | HEIF_SUFFIXES)


@cache
def _reads_heif() -> bool:
    """Whether Pillow reads HEIC now: it is taught to where the package for it is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return True


def match_key(path: Path) -> str:
    """What two files must share to be the same image at two scales: the stem, in any letter case or Unicode form."""
    return unicodedata.normalize("NFC", path.stem).casefold()


def read_image(path: Path) -> Image.Image:
    """The image of `read_picture`."""
    return read_picture(path).image


def read_picture(path: Path) -> Picture:
    """File → upright 8-bit RGB in sRGB. EXIF rotation is applied, transparency laid over white, 16 bits scaled to 8.

    Raises UnreadableImageError if not all of it can be decoded.
    """
    _reads_heif()
    try:
        if path.exists() and not path.is_file():
            raise UnreadableImageError(path, "is a pipe or a device, not a file: put the image itself there")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF and the like, which hurts no pixel
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _picture(file)
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(path, _too_large(error)) from error
    except MemoryError as error:
        raise UnreadableImageError(path, "needs more memory than is free: save it smaller") from error
    except _UnsuitableError as error:
        raise UnreadableImageError(path, str(error)) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UnreadableImageError(path, _why_not_decoded(path)) from error


class _UnsuitableError(ValueError):
    """Pixels that can be decoded, but do not make a picture."""


def _picture(file: Image.Image) -> Picture:
    try:
        profile, colours = profile_of(file), None
    except ValueError:
        profile, colours = None, Colours.UNREADABLE
    image, found = _to_rgb(ImageOps.exif_transpose(file), profile)
    return Picture(image, colours or found)


def _too_large(error: Exception) -> str:
    pixels = int(re.search(r"\d+", str(error))[0])
    return (
        f"has {pixels / 1e6:,.0f} million pixels, but at most {MOST_PIXELS // 10**6} million are read: save it smaller"
    )


def _why_not_decoded(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        return f"cannot be read ({why_not_read(path, error)}): check the file and its permissions"
    # by content too, because iPhones' pictures are also found under the names of other formats
    is_heif = path.suffix.lower() in HEIF_SUFFIXES or (head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS)
    if is_heif and not _reads_heif():
        return f"HEIC is read with the package pillow-heif: {how_to_install('pillow_heif', 'heif')}, or save it as JPEG"
    if path.suffix.lower() in NO_PIXELS:
        return "cannot be read as an image, as drawings and films are not: save it as PNG"
    return f"cannot be read as an image: {SAVE_ANEW}"


def _to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, Colours]:
    if image.mode == "F":
        raise _UnsuitableError(
            "cannot be read as an image: floating-point pixels have no agreed range; save it with 8 or 16 bits per channel"
        )
    if image.mode.startswith("I"):  # 16-bit grey; plain convert() would clip at 255
        image = image.convert("I")
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise _UnsuitableError(
                "cannot be read as an image: pixels of 32 bits have no agreed range; save it with 8 or 16 bits per channel"
            )
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return to_srgb(image, profile)
    rgba = image.convert("RGBA")
    if profile is not None:
        grey = image.mode in ("1", "L", "LA", "La")
        opaque, colours = to_srgb(rgba.convert("L" if grey else "RGB"), profile)
        opaque.putalpha(rgba.getchannel("A"))
        rgba = opaque
    else:
        colours = Colours.KEPT
    canvas = Image.new("RGBA", rgba.size, (*WHITE, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB"), colours


def fitted_size(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) in px of about resolution² pixels, the aspect ratio of `size`, sides multiples of `multiple`.

    These are the buckets of other trainers without a list of them. A square becomes exactly resolution × resolution.
    """
    width, height = size
    factor = resolution / (width * height) ** 0.5
    return tuple(max(multiple, round(side * factor / multiple) * multiple) for side in size)


def covering(have: tuple[int, int], want: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """How a picture of size `have` is made to cover `want`: the (width, height) it is scaled to, and the (left, top) of
    what is kept of that."""
    factor = max(want[0] / have[0], want[1] / have[1])
    covered = tuple(max(w, round(side * factor)) for side, w in zip(have, want, strict=True))
    left, top = ((c - w) // 2 for c, w in zip(covered, want, strict=True))
    return covered, (left, top)


def resize_to_cover(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int], tuple[int, int]]:
    """Scale `image` until it covers `size`, cut the overhang off evenly.

    Returns the picture, the (width, height) it had before the cut, and the (left, top) of the cut.
    """
    covered, (left, top) = covering(image.size, size)
    box = (left, top, left + size[0], top + size[1])
    return image.resize(covered, Image.Resampling.LANCZOS).crop(box), covered, (left, top)

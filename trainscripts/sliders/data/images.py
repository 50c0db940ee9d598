"""Image files of any kind that Pillow reads → upright RGB pictures, resized without distortion."""

import unicodedata
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from sliders.system.errors import InputError

WHITE = (255, 255, 255)


def is_image_name(path: Path) -> bool:
    """True for an extension that Pillow reads, in any letter case; hidden files (`.DS_Store`, `._x.png`) are not images."""
    return path.suffix.lower() in _readable_extensions() and not path.name.startswith(".")


def _readable_extensions() -> set[str]:
    return {ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def match_key(path: Path) -> str:
    """What two files must share to be the same image at two scales: the stem, in any letter case or Unicode form."""
    return unicodedata.normalize("NFC", path.stem).casefold()


def read_image(path: Path) -> Image.Image:
    """File → upright 8-bit RGB. EXIF rotation is applied, transparency laid over white, 16 bits scaled to 8.

    Raises InputError, naming the file, if Pillow cannot decode all of it.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a pipe or a device, not a file: put the image itself there.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF and the like, which hurts no pixel
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _to_rgb(ImageOps.exif_transpose(file))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: has more pixels than Pillow takes for safe: save it smaller.") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise InputError(f"{path}: cannot be read as an image: save it anew, for example as PNG.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey; plain convert() would clip at 255
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*WHITE, 255))
        image = Image.alpha_composite(canvas, rgba)
    return image.convert("RGB")


def fitted_size(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) in px of about resolution² pixels, the aspect ratio of `size`, sides multiples of `multiple`.

    These are the buckets of other trainers without a list of them. A square becomes exactly resolution × resolution.
    """
    width, height = size
    factor = resolution / (width * height) ** 0.5
    return tuple(max(multiple, round(side * factor / multiple) * multiple) for side in size)


def resize_to_cover(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int], tuple[int, int]]:
    """Scale `image` until it covers `size`, cut the overhang off evenly.

    Returns the picture, the (width, height) it had before the cut, and the (left, top) of the cut.
    """
    factor = max(size[0] / image.width, size[1] / image.height)
    covered = tuple(max(want, round(side * factor)) for side, want in zip(image.size, size, strict=True))
    left, top = ((have - want) // 2 for have, want in zip(covered, size, strict=True))
    box = (left, top, left + size[0], top + size[1])
    return image.resize(covered, Image.Resampling.LANCZOS).crop(box), covered, (left, top)

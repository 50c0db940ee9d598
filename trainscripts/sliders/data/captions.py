"""Captions: `NAME.txt` beside `NAME.png`, as LoRA users keep them, or in the folder `captions` of the data set."""

from collections.abc import Sequence
from pathlib import Path

from sliders.system.errors import InputError

FOLDER = "captions"
SUFFIX = ".txt"
MAX_BYTES = 20_000


def find_captions(
    folder_main: Path, names: Sequence[str], files: Sequence[Sequence[Path]]
) -> tuple[tuple[str, ...], set[Path]]:
    """The caption of each image name, () where the data set has no captions at all; and the files that hold them.

    files: of each name, its image at every scale. A caption may stand beside any of them, or in `captions`; where there
    are several they must agree. Raises InputError with a line for each name whose caption is missing, empty, unreadable,
    or differs between folders.
    """
    rows = [_candidates(folder_main, name, row) for name, row in zip(names, files, strict=True)]
    if not any(rows):
        return (), set()
    captions, problems = [], []
    for name, paths in zip(names, rows, strict=True):
        try:
            captions.append(_agreed(name, paths))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return tuple(captions), {path for paths in rows for path in paths}


def _candidates(folder_main: Path, name: str, images: Sequence[Path]) -> list[Path]:
    paths = [folder_main / FOLDER / f"{name}{SUFFIX}", *(image.with_suffix(SUFFIX) for image in images)]
    return [path for path in paths if path.is_file()]


def _agreed(name: str, paths: list[Path]) -> str:
    if not paths:
        raise InputError(
            f"captions: {name} has no {name}{SUFFIX}, but other images have captions: write one beside the image, or remove "
            "all captions."
        )
    texts = {_read(path): path for path in reversed(paths)}
    if len(texts) > 1:
        (first, place), (second, other) = list(texts.items())[:2]
        raise InputError(
            f"captions: {place} says {first!r} but {other} says {second!r}: the caption of one image must be the same at every "
            "scale, for what differs is what the slider learns; keep one file."
        )
    return next(iter(texts))


def _read(path: Path) -> str:
    """The text as one line. Line breaks and runs of spaces become one space."""
    try:
        raw = path.read_bytes()
        text = " ".join(raw.decode("utf-8-sig").split())
    except OSError as error:
        raise InputError(f"captions: {path} cannot be read ({error.strerror}): check its permissions.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"captions: {path} is not UTF-8 text: save it as UTF-8.") from error
    if not text:
        raise InputError(f"captions: {path} is empty: describe the image in it, or remove all captions.")
    if len(raw) > MAX_BYTES or not text.isprintable():
        raise InputError(f"captions: {path} is not a caption (too long, or not plain text): write one line of text.")
    return text

"""Captions: `NAME.txt` beside `NAME.png`, as LoRA users keep them, or in the folder `captions` of the data set.

They are matched as images are: in any letter case and Unicode form. `.caption` counts as `.txt`, and `NAME.png.txt` and
`NAME.txt.txt`, which programs and Windows make of it, as `NAME.txt`.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from sliders.config.prompts import special_token
from sliders.data.folders import UNPRINTABLE, Folder, is_folder, listed
from sliders.data.images import is_image_name, match_key
from sliders.system.errors import InputError
from sliders.system.files import why_not_read

FOLDER = "captions"
SUFFIXES = (".txt", ".caption")
MAX_BYTES = 20_000
# First words of names of text files that say something of the whole data set, and would not be missed as captions.
DOCUMENTS = {
    "about", "changelog", "copying", "copyright", "credits", "info", "licence", "license", "note", "notes", "readme",
    "source", "sources", "todo",
}  # fmt: skip


@dataclass(frozen=True)
class Captions:
    texts: tuple[str, ...]  # of each image name; empty where the data set has none
    files: frozenset[Path]  # that hold them, or those of names that are done without
    strays: tuple[Path, ...]  # files that could be captions, but of no image


def find_captions(
    folder_main: Path, keys: Sequence[str], names: Sequence[str], folders: Iterable[Folder],
    unused: Set[str] = frozenset(),
) -> Captions:  # fmt: skip
    """keys: the match key of each image name. A caption may stand beside an image at any scale, or in `captions`; where
    there are several they must agree. unused: the match keys of names that are done without, and their captions with them.

    Raises InputError with what is wrong: captions that are missing, empty or unreadable, that differ between folders, or
    that fit no image while there are no others.
    """
    candidates, elsewhere = _candidates(folder_main, folders)
    known, found, strays, of_unused = set(keys), defaultdict(list), [], set()
    for path in candidates:
        key = next((key for key in _keys(path) if key in known), None)
        if key is None and not unused.isdisjoint(_keys(path)):
            of_unused.add(path)
        elif key is None:
            strays.append(path)
        else:
            found[key].append(path)
    strays += [path for path in elsewhere if not known.isdisjoint(_keys(path))]
    if not found:
        return Captions((), frozenset(of_unused), _only_documents(strays, names))
    missing = [name for key, name in zip(keys, names, strict=True) if key not in found]
    problems = [_missing(missing, strays)] if missing else []
    texts = []
    for key in keys:
        try:
            texts.append(_agreed(found[key]) if key in found else "")
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    files = of_unused.union(*found.values())
    return Captions(tuple(texts), frozenset(files), tuple(strays))


def _candidates(folder_main: Path, folders: Iterable[Folder]) -> tuple[list[Path], list[Path]]:
    """Files that could be captions: in the places where captions are, and in the data set's own folder, where none are."""
    try:
        inside = sorted(folder_main.iterdir())
        # a link that leads nowhere is opened too, for the system's reason
        places = [p for p in inside if p.name.lower() == FOLDER and (is_folder(p) or p.is_symlink())]
        kept = [path for place in places for path in sorted(place.iterdir())]
    except OSError as error:
        place = Path(error.filename or folder_main)
        raise InputError(
            f"captions: {place} cannot be opened ({why_not_read(place, error)}): check its permissions."
        ) from error
    beside = [path for folder in folders for path in folder.others]
    candidates = dict.fromkeys(path for path in [*kept, *beside] if _is_caption_name(path))
    return list(candidates), [path for path in inside if _is_caption_name(path) and path not in candidates]


def _is_caption_name(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not is_folder(path)


def _keys(path: Path) -> list[str]:
    """The match keys of the image that a caption may belong to, the likeliest first."""
    inner = Path(path.stem)
    doubled = is_image_name(inner) or inner.suffix.lower() in SUFFIXES
    return [match_key(path), match_key(inner)] if doubled else [match_key(path)]


def _only_documents(strays: list[Path], names: Sequence[str]) -> tuple[Path, ...]:
    """`strays`, unless they look like the captions of the data set."""
    captions = [path for path in strays if re.match(r"[^\W\d_]*", path.stem.lower())[0] not in DOCUMENTS]
    if captions:
        raise InputError(
            f"captions: {_shown(captions)}: no image has this name or lies there, and there are no other captions: name each caption "
            f"like its image, such as {names[0]}.txt, and put it beside the image or into {FOLDER}/, or remove it."
        )
    return tuple(strays)


def _missing(names: list[str], strays: list[Path]) -> str:
    has = "has" if len(names) == 1 else "have"
    example = f"{names[0]}.txt" if len(names) == 1 else "NAME.txt"
    unfit = f", and no image has the name of {_shown(strays)}" if strays else ""
    return (
        f"captions: {listed(names)} {has} no {example}, but other images have captions{unfit}: write one beside the image, or "
        "remove all captions."
    )


def _shown(paths: Sequence[Path]) -> str:
    return listed(f"{path.parent.name}/{path.name}" for path in paths)


def _agreed(paths: list[Path]) -> str:
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
        if path.exists() and not path.is_file():
            raise InputError(f"captions: {path} is a pipe or a device, not a file: put the caption itself there.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(
                f"captions: {path} is not a caption (it has {size:,} bytes, and at most {MAX_BYTES:,} are read): write one line of "
                "text."
            )
        text = " ".join(path.read_bytes().decode("utf-8-sig").split())
    except OSError as error:
        raise InputError(
            f"captions: {path} cannot be read ({why_not_read(path, error)}): check the file and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"captions: {path} is not UTF-8 text: save it as UTF-8.") from error
    if not text:
        raise InputError(f"captions: {path} is empty: describe the image in it, or remove all captions.")
    if any(unicodedata.category(c) in UNPRINTABLE for c in text):
        raise InputError(f"captions: {path} is not a caption (not plain text): write one line of text.")
    if token := special_token(text):
        raise InputError(f"captions: {path} contains {token}, which the text encoder does not read as text: remove it.")
    return text

"""The files of the scale folders: images matched by name, each decoded once, and what is wrong with them."""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sliders.config.schema import Data
from sliders.data.images import Colours, UnreadableImageError, is_image_name, match_key, read_picture
from sliders.system.errors import InputError
from sliders.system.files import why_not_read

SHOWN = 8  # names an error lists before it says how many more there are
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # line breaks, terminal controls, bytes that are not text
MOST_STRETCH = 1.05  # of width / height between images of one name
SLOW = 1.0  # seconds after which reading the images shows its progress
Files = tuple[Path, ...]


@dataclass(frozen=True)
class Folder:
    """What lies in one scale folder."""

    images: dict[str, list[Path]]  # {match key: files of that name}
    others: list[Path]  # visible files that are not images


@dataclass(frozen=True)
class Reading:
    """What was seen of the image files when each was decoded."""

    sizes: tuple[tuple[tuple[int, int], ...], ...]  # (width, height) px of each name at each scale
    colours: dict[Colours, tuple[Path, ...]]  # files of which there is something to tell
    pixels: tuple[tuple[bytes, ...], ...]  # digests of the decoded pixels


def find_folders(data: Data) -> tuple[dict[str, Folder], list[str]]:
    """{folder: what lies in it} of those that are there, each once, and what is wrong with the others."""
    main = data.folder_main
    inside = [path for path in _listing(main, "--folder_main", f"{main}") if is_folder(path)]
    there = listed(path.name for path in inside) or "no folder"
    comma = "; put a name that contains a comma in double quotes" if any("," in path.name for path in inside) else ""
    found, problems, seen = {}, [], {}
    for name in data.folders:
        path = main / name
        if _is_missing(path):
            problems.append(
                f"--folders: {name!r} is not a folder in {main}, which holds {there}: check its name{comma}."
            )
            continue
        try:
            files = _listing(path, "--folders", repr(name))
        except InputError as error:
            problems.append(str(error))
            continue
        first = seen.setdefault(path.resolve(), name)
        if first != name:
            problems.append(f"--folders: {name!r} and {first!r} are the same folder: give each scale its own.")
            continue
        found[name] = _sorted_out(path, files)
    return found, problems


def _listing(path: Path, flag: str, shown: str) -> Files:
    try:
        return tuple(sorted(path.iterdir()))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        if _is_missing(path) or isinstance(error, NotADirectoryError):
            raise InputError(f"{flag}: {shown} is not a folder: check the path.") from error
        raise InputError(
            f"{flag}: {shown} cannot be opened as a folder ({why_not_read(path, error)}): check the path and its permissions."
        ) from error


def _is_missing(path: Path) -> bool:
    """Whether nothing has this name. False for a link that leads nowhere, and where the system does not say."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def _sorted_out(folder: Path, files: Files) -> Folder:
    images, others = defaultdict(list), []
    for path in files:
        if any(unicodedata.category(c) in UNPRINTABLE for c in path.name):
            raise InputError(f"{str(folder)!r}: {path.name!r} holds signs that cannot be printed: rename it.")
        if is_image_name(path) and not is_folder(path):
            images[match_key(path)].append(path)
        elif not path.name.startswith(".") and not is_folder(path):
            others.append(path)
    return Folder(dict(images), others)


def is_folder(path: Path) -> bool:
    """False where the system does not say, so that reading the file gives the reason."""
    try:
        return path.is_dir()
    except OSError:
        return False


def unmatched(main: Path, found: dict[str, Folder]) -> list[str]:
    """Folders without images, names without a partner, and two files of one name."""
    problems = []
    for name, folder in found.items():
        if not folder.images:
            others = f" (only {listed(path.name for path in folder.others)})" if folder.others else ""
            problems.append(f"{main}: folder {name!r} holds no images{others}: put the images of this scale there.")
        for paths in folder.images.values():
            if len(paths) > 1:
                problems.append(
                    f"{main}: folder {name!r} holds {listed(p.name for p in paths)}, which are one name: keep one of them."
                )
    everything = {key: paths[0].name for folder in found.values() for key, paths in folder.images.items()}
    for name, folder in found.items():
        missing = [file for key, file in everything.items() if key not in folder.images]
        if folder.images and missing:
            problems.append(
                f"{main}: folder {name!r} has {len(folder.images)} of {len(everything)} images and lacks {listed(missing)}: "
                "each image must be in every folder under the same name; --incomplete drop does without those that are not."
            )
    return problems


def read_all(files: tuple[Files, ...]) -> tuple[Reading, list[str]]:
    """Decodes every image once. Returns what was seen, and what is wrong with files or their sizes."""
    sizes, pixels, colours = [], [], defaultdict(list)
    problems: dict[str, list[str]] = defaultdict(list)  # by kind, of which only so many are told
    with tqdm(total=sum(map(len, files)), desc="checking images", unit="img", delay=SLOW) as bar:
        for row in files:
            row_sizes, row_pixels = [], []
            for path in row:
                try:
                    picture = read_picture(path)
                except UnreadableImageError as error:
                    problems[error.why].append(str(error))
                else:
                    row_sizes.append(picture.image.size)
                    row_pixels.append(hashlib.blake2b(picture.image.tobytes(), digest_size=16).digest())
                    colours[picture.colours].append(path)
                bar.update()
            if len(row_sizes) == len(row) and _stretch(row_sizes) > MOST_STRETCH:
                problems[str(row[0])].append(_unlike(row, row_sizes))
            sizes.append(tuple(row_sizes))
            pixels.append(tuple(row_pixels))
    told = {kind: tuple(paths) for kind, paths in colours.items() if kind is not Colours.KEPT}
    return Reading(tuple(sizes), told, tuple(pixels)), [
        line for why, lines in problems.items() for line in _few(lines, why)
    ]


def _few(lines: list[str], why: str) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], f"{more} more image(s): {why}."] if more > 0 else lines


def _stretch(sizes: list[tuple[int, int]]) -> float:
    """How many times as wide for its height the widest image is as the narrowest."""
    aspects = [width / height for width, height in sizes]
    return max(aspects) / min(aspects)


def _unlike(row: Files, sizes: list[tuple[int, int]]) -> str:
    first: dict[tuple[int, int], Path] = {}
    for path, size in zip(row, sizes, strict=True):
        first.setdefault(size, path)
    shown = " but ".join(f"{path} is {width}×{height}" for (width, height), path in first.items())
    return (
        f"{shown}: images of one name must have one size, or proportions that differ by at most {MOST_STRETCH - 1:.0%}: crop or "
        "scale them."
    )


def usual_size(sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size that most images of a name have, of several the first."""
    return Counter(sizes).most_common(1)[0][0]


def listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

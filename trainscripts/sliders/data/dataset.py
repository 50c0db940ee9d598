"""The data set: the same images in one folder per scale, found and checked before any model is loaded."""

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from sliders.config.prompts import CAPTION, PromptSet
from sliders.config.schema import Data
from sliders.data.captions import find_captions
from sliders.data.draws import RowDraw
from sliders.data.images import fitted_size, is_image_name, match_key, read_image
from sliders.system.errors import InputError

SHOWN = 8  # names an error lists before it says how many more there are
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # line breaks, terminal controls, bytes that are not text
PROGRESS_FROM = 50  # images; fewer are checked in an instant


@dataclass(frozen=True)
class ScaleFolders:
    """`files[n][s]` is image name `names[n]` as it is to look at multiplier `scales[s]`, scales ascending."""

    folder_main: Path
    folders: tuple[str, ...]
    scales: tuple[float, ...]
    names: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...]
    sizes: tuple[tuple[int, int], ...]  # (width, height) of each name, px
    captions: tuple[str, ...]  # of each name; empty where the data set has none
    ignored: tuple[str, ...]  # files that are neither images nor captions
    size_multiple: int  # px: training sizes are multiples of it

    @classmethod
    def find(cls, data: Data, size_multiple: int) -> "ScaleFolders":
        """Match files by name across the folders and decode each once.

        Raises one InputError with a line for everything that is wrong: folders that are missing, empty or the same,
        names without a partner, two files of one name, files that cannot be read, sizes that differ within a name; where the
        images are in order, captions that are missing or disagree.
        """
        paths, missing = _folder_paths(data)
        found = {folder: _images_by_name(path) for folder, path in paths.items()}
        keys = sorted({key for images, _ in found.values() for key in images})
        files = tuple(tuple(p for images, _ in found.values() for p in images.get(key, ())) for key in keys)
        sizes, unfit = _checked_sizes(files)
        _raise_if(missing + _unmatched(data.folder_main, found) + unfit)
        names = tuple(row[0].stem for row in files)
        captions, caption_files = find_captions(data.folder_main, names, files)
        used = {f"{path.parent.name}/{path.name}" for path in caption_files}
        return cls(
            folder_main=data.folder_main,
            folders=data.folders,
            scales=data.scales,
            names=names,
            files=files,
            sizes=sizes,
            captions=captions,
            ignored=tuple(name for _, ignored in found.values() for name in ignored if name not in used),
            size_multiple=size_multiple,
        )

    @property
    def num_images(self) -> int:
        return len(self.names) * len(self.scales)

    @cached_property
    def digests(self) -> dict[str, str]:
        """{folder/image: first 16 digits of the file's sha256}, to recognise the same data set again."""
        found = {}
        for row in self.files:
            for folder, path in zip(self.folders, row, strict=True):
                with path.open("rb") as file:
                    found[f"{folder}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return found

    def fitted_size(self, name: int, resolution: int) -> tuple[int, int]:
        """(width, height) in px at which an image is trained."""
        return fitted_size(self.sizes[name], resolution, self.size_multiple)

    def fitted_sizes(self, resolution: int) -> list[tuple[int, int]]:
        """Those of all images, each once, ascending."""
        return sorted({self.fitted_size(name, resolution) for name in range(len(self.names))})

    def scale_of(self, row: RowDraw) -> float:
        return self.scales[row.scale]

    def place(self, row: RowDraw) -> str:
        """Which row it is, for messages."""
        return f"{self.names[row.name]} at {self.scale_of(row):g}, timestep {row.timestep}"

    def identity(self) -> dict:
        """What must be the same when a run is resumed. Images are identified by their content, so a data set may be moved."""
        return {
            "scales": self.scales,
            "images": self.digests,
            **({"captions": self.captions} if self.captions else {}),
        }

    def metadata(self, prompts: tuple[PromptSet, ...]) -> dict[str, str | dict | list]:
        """What a slider file tells of its images."""
        resolution = max(p.resolution for p in prompts)
        sizes = Counter(self.fitted_size(name, resolution) for name in range(len(self.names)))
        buckets = {i: {"resolution": s, "count": n * len(self.scales)} for i, (s, n) in enumerate(sizes.items())}
        return {
            "ss_dataset_dirs": {f: {"n_repeats": 1, "img_count": len(self.names)} for f in self.folders},
            "ss_bucket_info": {"buckets": buckets},
            "ss_tag_frequency": {f: self._tags(prompts) for f in self.folders},
            "sliders.folders": dict(zip(self.folders, self.scales, strict=True)),
        }

    def _tags(self, prompts: tuple[PromptSet, ...]) -> dict[str, int]:
        """{tag: how many images of a folder have it}, as kohya's scripts count them: what a prompt's commas separate.

        A1111 shows them as training words.
        """
        tags: Counter[str] = Counter()
        for caption in self.captions or ("",) * len(self.names):
            texts = dict.fromkeys(chosen.texts(caption)[1] for chosen in prompts)
            tags.update({tag for text in texts for word in text.split(",") if (tag := word.strip())})
        return dict(sorted(tags.items()))

    def describe(self, prompts: tuple[PromptSet, ...]) -> list[str]:
        """Lines of the plan."""
        return [f"images  {len(self.names)} names × {len(self.scales)} scales", "", self.table()]

    def remarks(self, prompts: tuple[PromptSet, ...]) -> list[str]:
        """What is allowed, but perhaps not meant."""
        remarks = []
        if self.ignored:
            more = " …" if len(self.ignored) > SHOWN else ""
            remarks.append(f"ignored, because they are not images: {', '.join(self.ignored[:SHOWN])}{more}.")
        if self.captions and not any(p.uses_captions for p in prompts):
            remarks.append(
                f"the {len(self.captions)} captions are not used: write {CAPTION} into the prompts, or leave all four empty."
            )
        resolution = max(p.resolution for p in prompts)
        small = [n for n, (w, h) in zip(self.names, self.sizes, strict=True) if w * h < 0.8 * resolution**2]
        if small:
            remarks.append(
                f"{len(small)} name(s), such as {small[0]}, are smaller than {resolution} px and will be enlarged."
            )
        return remarks

    def table(self) -> str:
        """Image × scale, as text: which file stands for which multiplier, and each image's caption."""
        head = ["image", *(f"{f} → {s:g}" for f, s in zip(self.folders, self.scales, strict=True)), "size"]
        body = [
            [name, *(path.name for path in row), f"{w}×{h}"]
            for name, row, (w, h) in zip(self.names, self.files, self.sizes, strict=True)
        ]
        if self.captions:
            head.append("caption")
            body = [[*line, caption] for line, caption in zip(body, self.captions, strict=True)]
        widths = [max(len(line[c]) for line in [head, *body]) for c in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in [head, *body]
        ]
        return "\n".join(lines)


def _raise_if(problems: list[str]) -> None:
    if problems:
        raise InputError("\n".join(problems))


def _listed(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _folder_paths(data: Data) -> tuple[dict[str, Path], list[str]]:
    """{folder: path} of those that are there, each once, and what is wrong with the others."""
    if not data.folder_main.is_dir():
        raise InputError(f"--folder_main: {data.folder_main} is not a folder: check the path.")
    paths = {folder: data.folder_main / folder for folder in data.folders}
    problems, seen = [], {}
    there = _listed(p.name for p in data.folder_main.iterdir() if p.is_dir()) or "no folder"
    for folder, path in paths.items():
        if not path.is_dir():
            problems.append(
                f"--folders: {folder!r} is not a folder in {data.folder_main}, which holds {there}: check its name."
            )
        elif path.resolve() in seen:
            problems.append(
                f"--folders: {folder!r} and {seen[path.resolve()]!r} are the same folder: give each scale its own."
            )
        seen.setdefault(path.resolve(), folder)
    return {folder: paths[folder] for resolved, folder in seen.items() if resolved.is_dir()}, problems


def _images_by_name(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """{match key: files}, and the names of visible files that are not images."""
    images, ignored = {}, []
    for path in sorted(folder.iterdir()):
        if any(unicodedata.category(c) in UNPRINTABLE for c in path.name):
            raise InputError(f"{str(folder)!r}: {path.name!r} holds signs that cannot be printed: rename it.")
        if is_image_name(path) and not path.is_dir():
            images.setdefault(match_key(path), []).append(path)
        elif path.is_file() and not path.name.startswith("."):
            ignored.append(f"{folder.name}/{path.name}")
    return images, ignored


def _unmatched(main: Path, found: dict[str, tuple[dict[str, list[Path]], list[str]]]) -> list[str]:
    problems = []
    for folder, (images, ignored) in found.items():
        if not images:
            others = f" (only {_listed(ignored)})" if ignored else ""
            problems.append(f"{main}: folder {folder!r} holds no images{others}: put the images of this scale there.")
        for paths in images.values():
            if len(paths) > 1:
                problems.append(
                    f"{main}: folder {folder!r} holds {_listed(p.name for p in paths)}, which are one name: keep one of them."
                )
    everything = {key: paths[0].name for images, _ in found.values() for key, paths in images.items()}
    for folder, (images, _) in found.items():
        missing = [name for key, name in everything.items() if key not in images]
        if images and missing:
            problems.append(
                f"{main}: folder {folder!r} has {len(images)} of {len(everything)} images and lacks {_listed(missing)}: "
                "each image must be in every folder under the same name."
            )
    return problems


def _checked_sizes(files: tuple[tuple[Path, ...], ...]) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """Size of each name, and what is wrong with its files."""
    problems, sizes = [], []
    for row in tqdm(files, "checking images", unit="name", disable=sum(map(len, files)) < PROGRESS_FROM):
        row_sizes = {}
        for path in row:
            try:
                row_sizes.setdefault(read_image(path).size, path)
            except InputError as error:
                problems.append(str(error))
        if len(row_sizes) > 1:
            shown = " but ".join(f"{path} is {w}×{h}" for (w, h), path in row_sizes.items())
            problems.append(f"{shown}: images of one name must have one size.")
        sizes.append(next(iter(row_sizes), (0, 0)))
    return tuple(sizes), problems

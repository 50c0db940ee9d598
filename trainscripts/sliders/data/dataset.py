"""The data set: the same images in one folder per scale, found and checked before any model is loaded."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from sliders.config.prompts import CAPTION, PromptSet
from sliders.config.schema import Data
from sliders.data.captions import Captions, find_captions
from sliders.data.choice import Choice, choose
from sliders.data.colours import Colours
from sliders.data.contract import Checked
from sliders.data.draws import RowDraw
from sliders.data.folders import SHOWN, SLOW, Files, Reading, find_folders, read_all, unmatched, usual_size
from sliders.data.images import fitted_size
from sliders.system.errors import InputError

ROWS = 20  # of the table, unless all are asked for
WIDEST = 40  # characters of its cells
SMALL = 0.8  # share of the pixels of a training size, below which it is told that an image is enlarged


@dataclass(frozen=True)
class ScaleFolders(Checked):
    """`files[n][s]` is image name `names[n]` as it is to look at multiplier `scales[s]`, scales ascending."""

    folder_main: Path
    folders: tuple[str, ...]
    scales: tuple[float, ...]
    names: tuple[str, ...]
    files: tuple[Files, ...]
    sizes: tuple[tuple[int, int], ...]  # (width, height) px of each name; of most of its images, if they differ
    seen: Reading  # of the files, each when it was checked
    captioning: Captions
    choice: Choice  # names that are done without
    ignored: tuple[str, ...]  # files that are neither images nor captions
    size_multiple: int  # px: training sizes are multiples of it

    @classmethod
    def find(cls, data: Data, size_multiple: int) -> "ScaleFolders":
        """Match files by name across the folders and decode each once.

        Raises one InputError with a line for everything that is wrong: folders that are missing, empty or the same,
        names without a partner, two files of one name, no name that is left, files that cannot be read, proportions that
        differ within a name;
        where the images are in order, captions that are missing, disagree or fit no image.
        """
        found, missing = find_folders(data)
        choice, found = choose(data, found)
        keys = sorted({key for folder in found.values() for key in folder.images})
        files = tuple(tuple(path for folder in found.values() for path in folder.images.get(key, ())) for key in keys)
        seen, unfit = read_all(files)
        if problems := missing + unmatched(data.folder_main, found) + unfit:
            raise InputError("\n".join(problems))
        names = tuple(row[0].stem for row in files)
        captioning = find_captions(data.folder_main, keys, names, found.values(), choice.keys)
        others = [path for folder in found.values() for path in folder.others]
        return cls(
            folder_main=data.folder_main,
            folders=data.folders,
            scales=data.scales,
            names=names,
            files=files,
            sizes=tuple(map(usual_size, seen.sizes)),
            seen=seen,
            captioning=captioning,
            choice=choice,
            ignored=tuple(f"{path.parent.name}/{path.name}" for path in others if path not in captioning.files),
            size_multiple=size_multiple,
        )

    @property
    def captions(self) -> tuple[str, ...]:
        """Of each name; empty where the data set has none."""
        return self.captioning.texts

    @property
    def untrained(self) -> int | None:
        """Index of the scale 0, at which a slider does nothing and its weights have no gradient; None without one."""
        return self.scales.index(0.0) if 0.0 in self.scales else None

    @property
    def unchanging(self) -> tuple[str, ...]:
        """Names whose images have the same pixels at all scales."""
        return tuple(name for name, row in zip(self.names, self.seen.pixels, strict=True) if len(set(row)) == 1)

    @cached_property
    def digests(self) -> dict[str, str]:
        """{folder/image: first 16 digits of the file's sha256}, to recognise the same data set again."""
        found = {}
        rows = [(folder, path) for row in self.files for folder, path in zip(self.folders, row, strict=True)]
        for folder, path in tqdm(rows, "reading images", unit="img", delay=SLOW):
            with path.open("rb") as file:
                found[f"{folder}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return found

    def fitted_size(self, image: int, resolution: int) -> tuple[int, int]:
        return fitted_size(self.sizes[image], resolution, self.size_multiple)

    def fitted_sizes(self, resolution: int) -> list[tuple[int, int]]:
        return sorted({self.fitted_size(name, resolution) for name in range(len(self.names))})

    def texts(self, prompts: tuple[PromptSet, ...]) -> list[list[tuple[str, str]]]:
        """[prompt set][image name] → what it is read with, (neutral, positive)."""
        return [[chosen.texts(caption) for caption in self.captions or ("",) * len(self.names)] for chosen in prompts]

    def place(self, row: RowDraw) -> str:
        return f"{self.names[row.image]} at {row.scale:g}, timestep {row.timestep}"

    def identity(self) -> dict:
        """Images are identified by their content, so a data set may be moved.

        Those whose colours are converted count as others than the same files as they were read before.
        """
        converted = set(self.seen.colours.get(Colours.CONVERTED, ()))
        places = [
            f"{f}/{p.name}" for row in self.files for f, p in zip(self.folders, row, strict=True) if p in converted
        ]
        return {
            "scales": self.scales,
            "images": self.digests,
            **({"colours": dict.fromkeys(places, "converted to sRGB")} if places else {}),
            **({"captions": self.captions} if self.captions else {}),
        }

    def metadata(self, prompts: tuple[PromptSet, ...]) -> dict[str, str | dict | list]:
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
        for pairs in zip(*self.texts(prompts), strict=True):
            tags.update({tag for _, positive in pairs for word in positive.split(",") if (tag := word.strip())})
        return dict(sorted(tags.items()))

    def describe(self, prompts: tuple[PromptSet, ...], whole: bool = False) -> list[str]:
        return [
            f"images  {len(self.names)} names × {len(self.scales)} scales{self.choice.describe()}",
            "",
            self.table(whole),
        ]

    def remarks(self, prompts: tuple[PromptSet, ...]) -> list[str]:
        remarks = [*self._remarks_on_files(), *self._remarks_on_images(max(p.resolution for p in prompts))]
        if self.captions and not any(p.uses_captions for p in prompts):
            remarks.append(
                f"the {len(self.captions)} captions are not used: write {CAPTION} into the prompts, or leave all four empty."
            )
        return remarks

    def _remarks_on_files(self) -> Iterable[str]:
        strays = [*map(self._place, self.captioning.strays)]
        if others := [place for place in self.ignored if place not in strays]:
            yield f"ignored, because they are not images: {_few(others)}."
        if strays:
            yield (
                f"text files that belong to no image, and are not used: {_few(strays)}; a caption has the name "
                "of its image and lies beside it or in captions/."
            )
        if self.untrained is not None:
            yield (
                f"folder {self.folders[self.untrained]!r} at scale 0 is not trained on, because a slider does nothing at 0; the "
                "report card and train.timestep_bias: auto use its images."
            )

    def _remarks_on_images(self, resolution: int) -> Iterable[str]:
        for colours, paths in self.seen.colours.items():
            yield f"{len(paths)} image(s), such as {self._place(paths[0])}, {colours.value}."
        unequal = [n for n, row in enumerate(self.seen.sizes) if len(set(row)) > 1]
        if unequal:
            shown = " and ".join(f"{w}×{h}" for w, h in dict.fromkeys(self.seen.sizes[unequal[0]]))
            yield (
                f"{len(unequal)} name(s), such as {self.names[unequal[0]]} ({shown}), differ in size between the folders: each is "
                "fitted to one size, and what overhangs is cut off; where some are enlarged, the slider learns their blur too."
            )
        least = [min(w * h for w, h in row) for row in self.seen.sizes]
        small = [name for name, pixels in zip(self.names, least, strict=True) if pixels < SMALL * resolution**2]
        if small:
            yield f"{len(small)} name(s), such as {small[0]}, are smaller than {resolution} px and will be enlarged."
        if self.unchanging:
            yield (
                f"{len(self.unchanging)} name(s) have the same image in all folders, from which nothing can be learnt: "
                f"{_few(self.unchanging)}."
            )
        columns = zip(*self.seen.pixels, strict=True)
        for (one, first), (other, second) in combinations(zip(self.folders, columns, strict=True), 2):
            if first == second and len(self.unchanging) < len(self.names):
                yield f"folders {one!r} and {other!r} hold the same images: check that each is that of its scale."

    def _place(self, path: Path) -> str:
        """folder/file, for messages."""
        return f"{path.parent.name}/{path.name}"

    def table(self, whole: bool = True) -> str:
        """Image × scale, as text: which file stands for which multiplier, and each image's caption.

        Unless `whole`, only the first rows. Long cells are shortened, captions of the whole table are not.
        """
        head = ["image", *(f"{f} → {s:g}" for f, s in zip(self.folders, self.scales, strict=True)), "size"]
        sizes = ["/".join(f"{w}×{h}" for w, h in dict.fromkeys(row)) for row in self.seen.sizes]
        body = [
            [name, *(path.name for path in row), size]
            for name, row, size in zip(self.names, self.files, sizes, strict=True)
        ]
        if self.captions:
            head.append("caption")
            body = [[*line, caption] for line, caption in zip(body, self.captions, strict=True)]
        shown = body if whole else body[:ROWS]
        lines = [[*map(_short, row[:-1]), row[-1] if whole else _short(row[-1])] for row in [head, *shown]]
        widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        if len(shown) < len(body):
            text.append(f"… and {len(body) - len(shown)} more names (--dry_run or logging.verbose: true lists all)")
        return "\n".join(text)


def _short(cell: str) -> str:
    """Without its middle if it is long: names differ at their ends."""
    half = WIDEST // 2
    return cell if len(cell) <= WIDEST else f"{cell[: half - 1]}…{cell[-half:]}"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")

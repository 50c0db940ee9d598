"""Measures the pictures of sliders against the images in the folders that they were trained on."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from PIL import Image

from sliders.data.dataset import ScaleFolders
from sliders.data.images import read_image, resize_to_cover
from sliders.models.base import Model, PromptEmbeds
from sliders.report.card import Card
from sliders.report.features import features
from sliders.report.ruler import Ruler
from sliders.report.sweeps import Foreign, rank_correlation, recognised, roughness
from sliders.system.errors import InputError
from sliders.system.progress import progress

MOST_SCENES = 24  # image names that are measured; more would hardly make the ruler better
FEWEST_SCENES = 2  # of which one is read by a ruler of the other


def check_folders(data: ScaleFolders, place: str) -> None:
    """Raises InputError, naming `place`, if there are too few images to make a ruler of."""
    if len(data.names) < FEWEST_SCENES:
        raise InputError(
            f"{place}: {data.folder_main} contains one image per folder, but measuring a slider needs at least "
            f"{FEWEST_SCENES}: add images."
        )


class Yardstick:
    """The folders' images as the frozen model sees them. It can measure any number of sliders of the same folders."""

    def __init__(self, model: Model, data: ScaleFolders, size: tuple[int, int], prompt: PromptEmbeds):
        """size: (width, height) in px of the pictures to come. prompt: of the denoiser for all images, best an empty one.

        The denoiser and the VAE are on the same device, and no adaptor is active.
        """
        self._model, self._prompt, self._scales = model, prompt, data.scales
        rows = _chosen(data)
        self.images = len(rows) * len(data.scales)
        images = progress(_images(rows, size), "measuring folders", self.images)
        found = features(model, images, prompt).unflatten(0, (len(rows), len(data.scales)))
        self._ruler = Ruler.fit(found, data.scales)
        self._foreign = Foreign(self._ruler.standardised(found))

    def measure(
        self,
        sweeps: Sequence[Sequence[Image.Image]],
        multipliers: Sequence[float],
        prompts: Sequence[int] | None = None,
    ) -> Card:
        """sweeps: RGB pictures [sweeps][multipliers] of the size given before, at ascending multipliers with 0.

        prompts: a number for the prompt of each sweep, if several show the same with other seeds.
        """
        pictures = progress(chain.from_iterable(sweeps), "measuring pictures", len(sweeps) * len(multipliers))
        flat = features(self._model, pictures, self._prompt)
        found = self._ruler.standardised(flat).unflatten(0, (len(sweeps), len(multipliers)))
        readings = self._ruler.read(flat).unflatten(0, (len(sweeps), len(multipliers)))
        base, rest = multipliers.index(0.0), self._foreign(found)
        low, high = min(0.0, self._scales[0]), max(0.0, self._scales[-1])
        own = recognised(rest, torch.tensor([low <= m <= high for m in multipliers]), prompts)
        return Card(
            scales=tuple(self._scales),
            multipliers=tuple(multipliers),
            readings=tuple(map(tuple, readings.tolist())),
            ruler_error=self._ruler.error,
            order=tuple(rank_correlation(multipliers, readings).tolist()),
            roughness=tuple((roughness(found) / self._foreign.unit).tolist()),
            foreign=tuple(((rest - rest[:, base : base + 1]).norm(dim=2).mean(0) / self._foreign.unit).tolist()),
            foreign_in_folders=self._foreign.in_folders,
            recognised=None if own is None else tuple(own.double().mean(0).tolist()),
            images=self.images,
        )


def _chosen(data: ScaleFolders) -> list:
    """The files of at most MOST_SCENES names, evenly spread."""
    count = min(MOST_SCENES, len(data.names))
    return [data.files[i * len(data.names) // count] for i in range(count)]


def _images(rows: list, size: tuple[int, int]) -> Iterator[Image.Image]:
    for files in rows:
        for path in files:
            yield resize_to_cover(read_image(path), size)[0]


def card_multipliers(scales: Sequence[float]) -> tuple[float, ...]:
    """Nine for four scales: 0, the scales, half as far again and twice as far; below positive scales, the highest negated."""
    low, high = scales[0], scales[-1]
    below = (-high, -high / 2) if low > 0 else (2 * low, 1.5 * low) if low < 0 else ()
    above = (1.5 * high, 2 * high) if high > 0 else (-low / 2, -low)
    return tuple(sorted({0.0, *scales, *(round(m, 6) for m in (*below, *above))}))

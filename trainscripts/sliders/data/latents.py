"""The data set as latents: every image encoded once, before training."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.config.prompts import PromptSet
from sliders.data.dataset import ScaleFolders
from sliders.data.draws import resolutions
from sliders.data.images import covering, read_image, resize_to_cover
from sliders.fast.path import vae_on
from sliders.models.base import Geometry, Model
from sliders.system.errors import InputError
from sliders.system.processes import Processes

CROP_ROOM = 1.25  # dynamic_crops: each side is encoded this much larger than the crop that is trained


@dataclass(frozen=True)
class View:
    """A way in which the images are encoded: at `resolution` px, or larger, with room for crops of that resolution."""

    resolution: int
    crops: bool


@dataclass(frozen=True)
class EncodedImage:
    """One image name in one view. Its latents are not yet normalised."""

    mean: Tensor  # of the posterior, [scales, c, h, w] float32
    std: Tensor  # the same shape
    geometry: Geometry  # `crop` is the corner of what is encoded
    latent_factor: int  # px per latent

    def crop(self, place: tuple[float, float]) -> tuple[tuple[slice, ...], Geometry]:
        """Place of a crop, each in [0, 1) -> its window in the latents, and the geometry of what lies there."""
        size = tuple(side // self.latent_factor for side in self.geometry.target)
        room = (have - want for have, want in zip(self.mean.shape[-2:], size, strict=True))
        corner = tuple(math.floor(p * (r + 1)) for p, r in zip(place, room, strict=True))
        window = (slice(None), *(slice(start, start + side) for start, side in zip(corner, size, strict=True)))
        moved = (edge + start * self.latent_factor for edge, start in zip(self.geometry.crop, corner, strict=True))
        return window, replace(self.geometry, crop=tuple(moved))


def views(prompts: tuple[PromptSet, ...]) -> list[View]:
    """All views that the prompt sets ask for, each once."""
    return list(dict.fromkeys(View(r, p.dynamic_crops) for p in prompts for r in resolutions(p)))


class LatentCache:
    """(image name, view) → `EncodedImage`, in main memory, where a step's rows are cut out of them."""

    def __init__(self, model: Model, data: ScaleFolders, wanted: list[View], device: str, processes: Processes):
        """Encodes every image once per view, in one of the processes; the VAE is on `device` only during the call.

        Raises InputError, naming the image, if its latents are not finite.
        """
        keys = [(name, view) for view in wanted for name in range(len(data.names))]
        total = len(processes.part(keys)) * len(data.scales)
        with vae_on(model, device), tqdm(total=total, desc="encoding images", unit="img") as bar:
            encoded = processes.share_out(keys, lambda key: self._encode(model, data, *key, bar))
        self._encoded: dict[tuple[int, View], EncodedImage] = dict(zip(keys, encoded, strict=True))

    def _encode(self, model: Model, data: ScaleFolders, name: int, view: View, bar: tqdm) -> EncodedImage:
        width, height = size = data.fitted_size(name, view.resolution)
        factor = model.facts.latent_factor
        if view.crops:
            size = tuple(math.ceil(side * CROP_ROOM / factor) * factor for side in size)
        means, stds = [], []
        for path in data.files[name]:
            picture, *_ = resize_to_cover(read_image(path), size)
            mean, std = model.encode_image(picture)
            if not (mean.isfinite().all() and std.isfinite().all()):
                raise InputError(
                    f"{path}: the VAE yields latents that are not finite: use a model with a sound VAE, or leave the image out."
                )
            means.append(mean)
            stds.append(std)
            bar.update()
        covered, corner = covering(data.sizes[name], size)  # the same at all scales, or it would tell them apart
        geometry = Geometry(covered[::-1], corner[::-1], (height, width))
        return EncodedImage(torch.stack(means), torch.stack(stds), geometry, factor)

    def __getitem__(self, key: tuple[int, View]) -> EncodedImage:
        return self._encoded[key]

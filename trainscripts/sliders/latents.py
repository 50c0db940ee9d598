"""The data set as latents: every image encoded once, before training, with its true SDXL time ids."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from sliders.dataset import ScaleFolders
from sliders.errors import InputError
from sliders.images import read_image, resize_to_cover
from sliders.models.sdxl import LATENT_FACTOR, SDXL
from sliders.samplers import resolutions
from sliders.schema import PromptSet

CROP_ROOM = 1.25  # dynamic_crops: each side is encoded this much larger than the crop that is trained


@dataclass(frozen=True)
class View:
    """A way in which the images are encoded: at `resolution` px, or larger, with room for crops of that resolution."""

    resolution: int
    crops: bool


@dataclass(frozen=True)
class EncodedImage:
    """One image name in one view. Latents are not yet multiplied by the VAE's scaling factor."""

    mean: Tensor  # of the posterior, [scales, 4, h, w] float32
    std: Tensor  # the same shape
    original: tuple[int, int]  # height and width in px before anything was cut off
    crop: tuple[int, int]  # top and left of what is encoded, px
    target: tuple[int, int]  # height and width in px of what is trained

    def crop_offset(self, place: tuple[float, float]) -> tuple[int, int]:
        """Place of a crop, each in [0, 1) → its top and left in latents."""
        room = (have - want // LATENT_FACTOR for have, want in zip(self.mean.shape[-2:], self.target, strict=True))
        return tuple(math.floor(p * (r + 1)) for p, r in zip(place, room, strict=True))


def views(prompts: tuple[PromptSet, ...]) -> list[View]:
    """All views that the prompt sets ask for, each once."""
    return list(dict.fromkeys(View(r, p.dynamic_crops) for p in prompts for r in resolutions(p)))


class LatentCache:
    """(image name, view) → `EncodedImage`, in main memory, where a step's rows are cut out of them."""

    def __init__(self, model: SDXL, data: ScaleFolders, wanted: list[View], device: str):
        """Encodes every image once per view; the VAE is on `device` only meanwhile.

        Raises InputError, naming the image, if its latents are not finite.
        """
        self.scaling_factor = model.scaling_factor
        self._encoded: dict[tuple[int, View], EncodedImage] = {}
        model.pipe.vae.to(device)
        with tqdm(total=data.num_images * len(wanted), desc="encoding images", unit="img") as bar:
            for view in wanted:
                for name in range(len(data.names)):
                    self._encoded[name, view] = self._encode(model, data, name, view, bar)
        model.pipe.vae.to("cpu")

    def _encode(self, model: SDXL, data: ScaleFolders, name: int, view: View, bar: tqdm) -> EncodedImage:
        width, height = data.fitted_size(name, view.resolution)
        size = (
            tuple(math.ceil(s * CROP_ROOM / LATENT_FACTOR) * LATENT_FACTOR for s in (width, height))
            if view.crops
            else (width, height)
        )
        means, stds = [], []
        for path in data.files[name]:
            picture, covered, corner = resize_to_cover(read_image(path), size)
            mean, std = model.encode_image(picture)
            if not (mean.isfinite().all() and std.isfinite().all()):
                raise InputError(
                    f"{path}: the VAE yields latents that are not finite: use a model with a sound VAE, or leave the image out."
                )
            means.append(mean)
            stds.append(std)
            bar.update()
        return EncodedImage(torch.stack(means), torch.stack(stds), covered[::-1], corner[::-1], (height, width))

    def __getitem__(self, key: tuple[int, View]) -> EncodedImage:
        return self._encoded[key]

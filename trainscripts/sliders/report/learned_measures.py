"""Measures of change that use trained models: CLIP score (transformers) and LPIPS (its own package). Both are optional."""

import importlib.util
import warnings

import torch
from PIL import Image
from torch import Tensor

from sliders.system.errors import InputError, first_line
from sliders.system.installation import how_to_install


class ClipScore:
    """100 × the cosine similarity of a picture and a text, −100 to 100.

    Hessel et al. 2021, arXiv:2104.08718, who weight the cosine by 2.5 and clip it at 0.
    """

    def __init__(self, name: str, device: str):
        """name: hub id or folder of a CLIP model. Raises InputError if it cannot be loaded."""
        from transformers import CLIPModel, CLIPProcessor

        try:
            self._model = CLIPModel.from_pretrained(name).eval().to(device)
            self._processor = CLIPProcessor.from_pretrained(name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = first_line(error).rstrip(".")
            raise InputError(
                f"--clip: {name} cannot be loaded as a CLIP model ({reason}): use one such as openai/clip-vit-large-patch14."
            ) from error

    @torch.no_grad()
    def __call__(self, picture: Image.Image, text: str) -> float:
        inputs = self._processor(text=[text], images=picture, return_tensors="pt", truncation=True)
        found = self._model(**inputs.to(self._model.device))
        return 100 * torch.cosine_similarity(found.image_embeds, found.text_embeds).item()


def check_lpips() -> None:
    """Raises InputError if the package lpips is not installed."""
    if importlib.util.find_spec("lpips") is None:
        raise InputError(f"--lpips needs a package that is not installed: {how_to_install('lpips', 'lpips')}.")


class Lpips:
    """Learned perceptual distance with AlexNet (Zhang et al. 2018, arXiv:1801.03924): 0 for equal pictures."""

    def __init__(self, device: str):
        """Raises InputError if the package or AlexNet's weights are missing."""
        check_lpips()
        import lpips

        try:
            with warnings.catch_warnings(action="ignore"):  # lpips uses deprecated arguments of torchvision
                self._model = lpips.LPIPS(net="alex", verbose=False).eval().to(device)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"--lpips: AlexNet's weights cannot be loaded ({error}): run once with network access, and torchvision caches them."
            ) from error
        self._device = device

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> float:
        """a, b: pictures [3, H, W] in [0, 1]."""
        first, second = (picture[None].to(self._device) * 2 - 1 for picture in (a, b))
        return self._model(first, second).item()

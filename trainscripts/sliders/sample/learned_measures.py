"""Measures of change by trained models: CLIP through transformers, LPIPS through its own package; both optional."""

import importlib.util
import warnings

import torch
from PIL import Image
from torch import Tensor

from sliders.system.errors import InputError
from sliders.system.installation import how_to_install


class ClipScore:
    """100 × cosine between a picture and a text (Hessel et al. 2021, arXiv:2104.08718, there 2.5 × and never below 0)."""

    def __init__(self, name: str, device: str):
        """`name`: hub id or folder of a CLIP model. Raises InputError where it cannot be loaded."""
        from transformers import CLIPModel, CLIPProcessor

        try:
            self._model = CLIPModel.from_pretrained(name).eval().to(device)
            self._processor = CLIPProcessor.from_pretrained(name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"--clip: {name} cannot be loaded as a CLIP model ({reason}): name one such as openai/clip-vit-large-patch14."
            ) from error

    @torch.no_grad()
    def __call__(self, picture: Image.Image, text: str) -> float:
        inputs = self._processor(text=[text], images=picture, return_tensors="pt", truncation=True)
        found = self._model(**inputs.to(self._model.device))
        return 100 * torch.cosine_similarity(found.image_embeds, found.text_embeds).item()


def check_lpips() -> None:
    if importlib.util.find_spec("lpips") is None:
        raise InputError(f"--lpips needs a package that is not installed: {how_to_install('lpips', 'lpips')}.")


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924), AlexNet: 0 for equal pictures."""

    def __init__(self, device: str):
        """Raises InputError where package or weights are missing."""
        check_lpips()
        import lpips

        try:
            with warnings.catch_warnings(action="ignore"):  # of how it calls torchvision
                self._model = lpips.LPIPS(net="alex", verbose=False).eval().to(device)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"--lpips: AlexNet's weights cannot be had ({error}): run once with a network, torchvision then keeps them."
            ) from error
        self._device = device

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> float:
        """Pictures [3, H, W] in [0, 1]."""
        first, second = (picture[None].to(self._device) * 2 - 1 for picture in (a, b))
        return self._model(first, second).item()

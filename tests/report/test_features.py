"""Features of pictures: what the base model's blocks see, whatever the batch."""

import pytest
import torch
from networks import random_network
from PIL import Image
from sliders.config.schema import PretrainedModel
from sliders.models.base import Geometry
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.report import features as module
from sliders.report.features import TIMESTEP, features


@pytest.fixture(scope="module")
def model():
    return SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)


@pytest.fixture(scope="module")
def prompt(model):
    return model.encode_prompts([""], "cpu")[""]


def pictures(count=3):
    pixels = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [Image.fromarray(p.numpy()) for p in pixels]


def test_they_are_the_means_of_the_blocks_outputs(model, prompt):
    """Recomputed by running the first block alone."""
    picture = pictures(1)
    found = features(model, picture, prompt)
    latents = (model.encode_image(picture[0])[0] * model.vae.config.scaling_factor)[None]
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0))
    alpha = model.objective.alphas[TIMESTEP].square()
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    unet, outputs = model.denoiser, []
    keep = unet.down_blocks[0].register_forward_hook(
        lambda module, args, kwargs, out: outputs.append(out), with_kwargs=True
    )
    model.denoise(noisy, torch.tensor([TIMESTEP]), model.conditioning([prompt], [Geometry((64, 64), (0, 0), (64, 64))]))
    keep.remove()
    block = outputs[0][0][0].double()  # [C, h, w]
    half = block.shape[1] // 2
    channels = block.shape[0]
    assert torch.allclose(found[0, 0, :channels], block.mean((1, 2)), atol=1e-5)
    corner = block[:, :half, half:].mean((1, 2)) - block.mean((1, 2))
    assert torch.allclose(found[0, 2, :channels], corner, atol=1e-5)


def test_they_do_not_depend_on_the_batch(model, prompt, monkeypatch):
    together = features(model, pictures(), prompt)
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 64 * 64)
    assert torch.allclose(features(model, iter(pictures()), prompt), together, atol=1e-5)


def test_an_attached_slider_without_multipliers_changes_nothing(model, prompt):
    before = features(model, pictures(), prompt)
    network = random_network(model.denoiser)
    network.set_multipliers(None)
    assert torch.equal(features(model, pictures(), prompt), before)
    network.set_multipliers(torch.ones(3))
    assert not torch.allclose(features(model, pictures(), prompt), before)
    network.remove()


def test_no_hook_stays(model, prompt):
    features(model, pictures(1), prompt)
    assert not any(m._forward_hooks for m in model.denoiser.modules())

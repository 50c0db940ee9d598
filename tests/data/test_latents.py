"""What is cached and cropped for a step, and that the model gets the true sizes and crops."""

import numpy as np
import pytest
import torch
from conftest import make_scale_folders, write_experiment
from PIL import Image
from sliders.config.prompts import PromptSet
from sliders.config.schema import PretrainedModel
from sliders.config.settings import load_settings
from sliders.data.latents import CROP_ROOM, LatentCache, View, views
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.system.errors import InputError
from sliders.system.processes import Processes
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer


def make_trainer(tmp_path, prompts, size=(64, 64)):
    data = make_scale_folders(tmp_path / "data", size=size)
    (settings,), _ = load_settings(write_experiment(tmp_path, prompts=prompts, data=data))
    return Trainer(make_plan(settings))


def ids(batch):
    return [tuple(int(x) for x in row) for row in batch.conditioning["time_ids"]]


def test_a_square_image_is_trained_whole_at_the_resolution(tmp_path):
    trainer = make_trainer(tmp_path, [{"target": "", "resolution": 96}], size=(200, 200))
    batch = trainer.step.make_batch(trainer.step.draw(0))
    assert batch.latents.shape == (2, 4, 12, 12)
    assert ids(batch) == [(96, 96, 0, 0, 96, 96)] * 2


def test_another_aspect_ratio_is_kept_and_told(tmp_path):
    """300 × 200 px at resolution 96: 118 × 78 would fit; the nearest bucket is 128 × 64, cut from 128 × 85."""
    trainer = make_trainer(tmp_path, [{"target": "", "resolution": 96}], size=(300, 200))
    batch = trainer.step.make_batch(trainer.step.draw(0))
    height, width = (8 * s for s in batch.latents.shape[-2:])
    original_height, original_width, top, left, *target = ids(batch)[0]
    assert tuple(target) == (height, width)
    assert original_width / original_height == pytest.approx(300 / 200, rel=0.02)
    assert (original_height - height) // 2 == top
    assert (original_width - width) // 2 == left


def test_dynamic_resolution_trains_many_sizes_each_told(tmp_path):
    trainer = make_trainer(tmp_path, [{"target": "", "resolution": 192, "dynamic_resolution": True}])
    seen = set()
    for step in range(30):
        batch = trainer.step.make_batch(trainer.step.draw(step))
        side = 8 * batch.latents.shape[-1]
        assert ids(batch) == [(side, side, 0, 0, side, side)] * 2
        seen.add(side)
    assert seen == {192, 128}


def test_dynamic_crops_are_windows_of_a_larger_picture_and_told(tmp_path):
    trainer = make_trainer(tmp_path, [{"target": "", "resolution": 64, "dynamic_crops": True}])
    cache, corners = trainer.step.make_batch.cache, set()
    factor = trainer.model.vae.config.scaling_factor
    for step in range(60):
        draw = trainer.step.draw(step)
        batch, row = trainer.step.make_batch(draw), draw.rows[1]
        original, _, top, left, *target = ids(batch)[1]
        assert (original, *target) == (round(64 * CROP_ROOM), 64, 64)
        image = cache[row.image, View(64, crops=True)]
        window = image.mean[row.folder, :, top // 8 : top // 8 + 8, left // 8 : left // 8 + 8] * factor
        spread = image.std[row.folder].max() * factor * 5
        assert (batch.latents[1] - window).abs().max() < spread
        corners.add((top, left))
    assert corners == {(y, x) for y in (0, 8, 16) for x in (0, 8, 16)}


def test_latents_are_what_the_vae_says(tmp_path):
    trainer = make_trainer(tmp_path, [{"target": "", "resolution": 64}])
    cache, vae = trainer.step.make_batch.cache, trainer.model.pipe.vae
    for name, row in enumerate(trainer.data.files):
        encoded = cache[name, View(64, crops=False)]
        for scale, path in enumerate(row):
            pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
            with torch.no_grad():
                posterior = vae.encode(torch.from_numpy(pixels.copy())[None]).latent_dist
            assert torch.allclose(encoded.mean[scale], posterior.mean[0], atol=1e-4)
            assert torch.allclose(encoded.std[scale], posterior.std[0], atol=1e-4)


def test_views_are_encoded_once():
    small = PromptSet.model_validate({"target": "a", "resolution": 128, "dynamic_resolution": True})
    plain = PromptSet.model_validate({"target": "b", "resolution": 128})
    assert views((small, plain, plain)) == [View(128, False), View(64, False)]


def test_an_image_that_the_vae_cannot_encode_is_named(tmp_path):
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    model.pipe.vae.encoder.conv_in.bias.data.fill_(float("nan"))
    make_scale_folders(tmp_path / "data")
    (settings,), _ = load_settings(write_experiment(tmp_path, prompts=[{"target": "", "resolution": 64}]))
    data = make_plan(settings).data
    with pytest.raises(InputError, match=r"verylow.one\.png.*not finite"):
        LatentCache(model, data, [View(64, False)], "cpu", Processes())

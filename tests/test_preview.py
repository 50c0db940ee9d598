"""The labelled picture at the end of a run, and the sampling behind it."""

import pytest
import torch
from conftest import write_experiment
from PIL import Image
from sliders.models.sdxl import load_sdxl
from sliders.preview import Sampling, labelled_grid, preview_multipliers, sample_grid, to_picture
from sliders.schema import PretrainedModel
from test_interop import random_network


def test_a_run_ends_with_a_picture_beside_the_slider(tmp_path, train_main):
    preview = {"prompts": ["a red disc", "a green disc"], "steps": 2, "multipliers": [0, 0.5, -1]}
    assert train_main(write_experiment(tmp_path, preview=preview)) == 0
    (path,) = (tmp_path / "models").rglob("*.png")
    assert path.name == "probe_alpha2.0_rank4_noxattn_last.preview.png"
    picture = Image.open(path)
    assert picture.width > 3 * 64
    assert 2 * 64 < picture.height < 3 * 64
    assert not list((tmp_path / "models").rglob("*.tmp"))


def test_a_picture_changes_nothing_in_the_slider(tmp_path, train_main, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    files = []
    for prompts in ([], ["a disc"]):
        root = tmp_path / str(len(prompts))
        root.mkdir()
        assert train_main(write_experiment(root, preview={"prompts": prompts, "steps": 1})) == 0
        (path,) = root.rglob("*_last.safetensors")
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_multipliers_of_the_picture():
    assert preview_multipliers((0.67, 1.0, 1.3, 2.0)) == (0.0, 0.67, 1.0, 1.3, 2.0, 2.7)
    assert preview_multipliers((-2.0, -1.0, 1.0, 2.0)) == (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_rows_with_their_own_multipliers_equal_one_by_one(guidance):
    model = load_sdxl(PretrainedModel(name_or_path="tiny"), torch.float32)
    embeds = model.encode_prompts(["a", "b", ""], "cpu")
    base_jobs = [(embeds["a"], 7), (embeds["b"], 8)]
    sampling = Sampling(64, 64, steps=3, guidance=guidance)
    base = sample_grid(model, None, base_jobs, embeds[""], (0.0,), sampling)
    network = random_network(model.unet)
    multipliers = (0.0, 0.67, 2.0)
    together = sample_grid(model, network, base_jobs, embeds[""], multipliers, sampling)
    assert torch.allclose(together[:, :1], base, atol=1e-5)
    for column, multiplier in enumerate(multipliers):
        for row, job in enumerate(base_jobs):
            alone = sample_grid(model, network, [job], embeds[""], (multiplier,), sampling)
            assert torch.allclose(alone[0, 0], together[row, column], atol=1e-4)
    assert (together[:, 2] - together[:, 0]).abs().max() > 1e-2


def test_labelled_grid_puts_pictures_where_they_belong():
    pictures = torch.zeros(2, 3, 3, 16, 24)
    pictures[1, 2] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    grid = labelled_grid(pictures, ["first row", "second"], ["0", "1", "2"])
    assert grid.getpixel((grid.width - 12, grid.height - 12)) == (255, 0, 0)
    assert grid.getpixel((grid.width - 12 - 28, grid.height - 12)) == (0, 0, 0)
    assert to_picture(pictures[1, 2]).getpixel((0, 0)) == (255, 0, 0)

"""Previews of a run, and how their pictures are sampled."""

import pytest
import torch
from conftest import write_experiment
from networks import random_network
from PIL import Image
from safetensors import safe_open
from sliders.config.schema import PretrainedModel
from sliders.models.sdxl.family import SDXL_FAMILY
from sliders.report.grids import labelled_grid, to_picture
from sliders.sample.preview import preview_multipliers, preview_sampling, sample_grid, sampling_from
from sliders.sample.sampling import Sampling


def test_a_run_ends_with_a_picture_beside_the_slider(tmp_path, train_main, monkeypatch):
    """Without a negative prompt, the tiny model's pipeline uses zeros, like SDXL-base's."""
    negatives = []

    def spy(model, network, jobs, negative, *rest):
        negatives.append(negative)
        return sample_grid(model, network, jobs, negative, *rest)

    monkeypatch.setattr("sliders.sample.preview.sample_grid", spy)
    preview = {"prompts": ["a red disc", "a green disc"], "steps": 2, "multipliers": [0, 0.5, -1]}
    assert train_main(write_experiment(tmp_path, preview=preview)) == 0
    (path,) = (tmp_path / "models").rglob("*.png")
    assert path.name == "probe_alpha2.0_rank4_noxattn_last.preview.png"
    picture = Image.open(path)
    assert picture.width > 3 * 64
    assert 2 * 64 < picture.height < 3 * 64
    assert not list((tmp_path / "models").rglob("*.tmp"))
    (negative,) = negatives
    assert not negative.tokens.any() and not negative.pooled.any()


def without_card(path):
    """(weights as bytes, metadata)"""
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "sliders.card"}
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :], metadata


def test_previews_in_training_change_nothing_in_the_slider(tmp_path, train_main, monkeypatch):
    """Slider files of a run with previews equal those of a run without, bit for bit, except for the card in the last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    sliders, previews = [], []
    for prompts in ([], ["a disc", "two discs"]):
        root = tmp_path / str(len(prompts))
        root.mkdir()
        preview = {"prompts": prompts, "steps": 2, "every": 2 if prompts else 0, "multipliers": [0, 1]}
        argv = write_experiment(root, preview=preview, train={"iterations": 6}, save={"per_steps": 3})
        assert train_main(argv) == 0
        sliders.append({p.name: without_card(p) for p in root.rglob("*.safetensors")})
        previews.append({p.name: p for p in root.rglob("*.preview.png")})
    assert sliders[0] == sliders[1]
    stem = "probe_alpha2.0_rank4_noxattn"
    assert not previews[0]
    assert set(previews[1]) == {f"{stem}_{s}.preview.png" for s in ("2steps", "3steps", "4steps", "last")}
    assert (
        previews[1][f"{stem}_2steps.preview.png"].read_bytes() != previews[1][f"{stem}_4steps.preview.png"].read_bytes()
    )
    events = EventAccumulator(str(tmp_path / "2" / "models" / stem / "logs"), size_guidance={"images": 0})
    events.Reload()
    assert [e.step for e in events.Images("preview")] == [2, 3, 4]


def test_sampling_during_training_restores_everything():
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    embeds = model.encode_prompts(["a", ""], "cpu")
    network = random_network(model.denoiser)
    multipliers = torch.tensor([0.3, 2.0])
    network.set_multipliers(multipliers)
    scheduler = model.pipe.scheduler
    state, timesteps = torch.get_rng_state(), scheduler.timesteps.clone()
    with sampling_from(model, network, "cpu"):
        sample_grid(model, network, [(embeds["a"], 1)], embeds[""], (0.0, 1.0), Sampling(64, 64, steps=2, guidance=2.0))
    assert torch.equal(network.multipliers, multipliers)
    assert model.pipe.scheduler is scheduler
    assert torch.equal(scheduler.timesteps, timesteps)
    assert torch.equal(torch.get_rng_state(), state)


def test_previews_fit_beside_training():
    sizes = {(1024, 1024): 1, (1216, 832): 1, (512, 512): 4, (128, 128): 16}
    assert {size: preview_sampling(*size, steps=1, guidance=2.0).batch_size for size in sizes} == sizes


def test_a_vae_that_does_not_fit_moves_to_the_cpu(monkeypatch):
    """The first decode runs out of memory; the pictures must not change."""
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    embeds = model.encode_prompts(["a", ""], "cpu")
    job = ([(embeds["a"], 1)], embeds[""], (0.0,), Sampling(64, 64, steps=1, guidance=1.0))
    wanted, decode, calls = sample_grid(model, None, *job), model.pipe.vae.decode, []

    def full_at_first(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return decode(*args, **kwargs)

    monkeypatch.setattr(model.pipe.vae, "decode", full_at_first)
    assert torch.equal(sample_grid(model, None, *job), wanted)
    assert len(calls) == 2


def test_preview_multipliers():
    assert preview_multipliers((0.67, 1.0, 1.3, 2.0)) == (0.0, 0.67, 1.0, 1.3, 2.0, 2.7)
    assert preview_multipliers((-2.0, -1.0, 1.0, 2.0)) == (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_rows_with_different_multipliers_equal_pictures_sampled_one_by_one(guidance):
    model = SDXL_FAMILY.load(PretrainedModel(name_or_path="tiny"), torch.float32)
    embeds = model.encode_prompts(["a", "b", ""], "cpu")
    base_jobs = [(embeds["a"], 7), (embeds["b"], 8)]
    sampling = Sampling(64, 64, steps=3, guidance=guidance)
    base = sample_grid(model, None, base_jobs, embeds[""], (0.0,), sampling)
    network = random_network(model.denoiser)
    multipliers = (0.0, 0.67, 2.0)
    together = sample_grid(model, network, base_jobs, embeds[""], multipliers, sampling)
    assert torch.allclose(together[:, :1], base, atol=1e-5)
    for column, multiplier in enumerate(multipliers):
        for row, job in enumerate(base_jobs):
            alone = sample_grid(model, network, [job], embeds[""], (multiplier,), sampling)
            assert torch.allclose(alone[0, 0], together[row, column], atol=1e-4)
    assert (together[:, 2] - together[:, 0]).abs().max() > 1e-2


def test_labelled_grid_puts_pictures_in_their_place():
    pictures = torch.zeros(2, 3, 3, 16, 24)
    pictures[1, 2] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    grid = labelled_grid(pictures, ["first row", "second"], ["0", "1", "2"])
    assert grid.getpixel((grid.width - 12, grid.height - 12)) == (255, 0, 0)
    assert grid.getpixel((grid.width - 12 - 28, grid.height - 12)) == (0, 0, 0)
    assert to_picture(pictures[1, 2]).getpixel((0, 0)) == (255, 0, 0)

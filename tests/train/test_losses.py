"""The objectives: what they aim at, in ε and in v alike."""

import dataclasses

import pytest
import torch
from conftest import write_experiment
from experiments import make_trainer
from networks import SDXL_BETAS, randomize
from sliders.config.settings import load_settings
from sliders.models.schedule import EPSILON, V_PREDICTION, NoiseSchedule
from sliders.train.losses import LOSSES, crossing, difference, reference
from sliders.train.plan import make_plan

TIMESTEPS = torch.tensor([20, 300, 700, 990])


def schedule(prediction):
    return NoiseSchedule.from_scheduler_config(SDXL_BETAS, prediction, zero_snr=False)


def draw(*names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 4, 8, 8, generator=generator) for _ in names]


def image_of(schedule, noisy, prediction):
    """The x₀ that a prediction stands for, by the textbook."""
    alpha, sigma = schedule.coefficients(TIMESTEPS)
    if schedule.prediction_type == EPSILON:
        return (noisy - sigma * prediction) / alpha
    return alpha * noisy - sigma * prediction


@pytest.mark.parametrize("prediction", [EPSILON, V_PREDICTION])
def test_the_target_leads_to_the_image_of_the_rows_own_scale(prediction):
    s = schedule(prediction)
    source, latents, noise = draw("source", "latents", "noise")
    noisy = s.add_noise(source, noise, TIMESTEPS)
    assert torch.allclose(image_of(s, noisy, s.target(noisy, latents, TIMESTEPS)), latents, atol=1e-3)
    assert torch.allclose(
        s.target(noisy, source, TIMESTEPS) + s.shift(source, latents, TIMESTEPS),
        s.target(noisy, latents, TIMESTEPS),
        atol=1e-3,
    )


def test_errors_weigh_the_same_in_epsilon_and_v():
    """The same wrong image costs the same, whichever the model predicts."""
    costs = []
    latents, noise, wrong = draw("latents", "noise", "wrong")
    for prediction in (EPSILON, V_PREDICTION):
        s = schedule(prediction)
        noisy = s.add_noise(latents, noise, TIMESTEPS)
        error = s.target(noisy, wrong, TIMESTEPS) - s.target(noisy, latents, TIMESTEPS)
        costs.append(s.crossing_weight(TIMESTEPS) * error.square().flatten(1).mean(1))
    assert torch.allclose(costs[0], costs[1], rtol=1e-3)
    image_error = (wrong - latents).square().flatten(1).mean(1)
    assert costs[0][0] == pytest.approx(image_error[0].item(), rel=1e-3)  # little noise: the error of the image itself


def test_crossing_of_an_image_with_itself_is_the_reference_weighted(tmp_path):
    trainer = make_trainer(tmp_path)
    randomize(trainer.network)
    batch = trainer.make_batch(trainer.draw(0))
    batch = dataclasses.replace(batch, sources=batch.latents)
    weight = trainer.model.schedule.crossing_weight(batch.timesteps)
    assert torch.allclose(crossing(trainer.denoiser, batch), weight * reference(trainer.denoiser, batch), rtol=1e-4)


def test_difference_asks_nothing_where_images_do_not_differ(tmp_path):
    """With adaptors that do nothing yet, the base model is already what is wanted there."""
    trainer = make_trainer(tmp_path)
    batch = trainer.make_batch(trainer.draw(0))
    same = dataclasses.replace(batch, sources=batch.latents)
    assert difference(trainer.denoiser, same).abs().max() < 1e-10
    rows = difference(trainer.denoiser, dataclasses.replace(batch, sources=batch.latents.flip(0)))
    assert (rows > 1e-4).all()


def test_a_pairs_source_is_the_image_of_a_scale_of_the_same_name(tmp_path):
    """Over many draws every scale is the source, and the source of both rows is one."""
    trainer = make_trainer(tmp_path)
    seen = set()
    for step in range(40):
        drawn = trainer.draw(step)
        batch = trainer.make_batch(drawn)
        assert torch.equal(batch.sources[0], batch.sources[1])
        pair = drawn.pairs[0]
        seen.add(pair.source)
        for row, scale in ((0, pair.low), (1, pair.high)):
            assert torch.equal(batch.sources[row], batch.latents[row]) == (pair.source == scale)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_from_the_config(tmp_path, loss):
    (settings,), _ = load_settings(write_experiment(tmp_path, train={"loss": loss}))
    from sliders.train.trainer import Trainer

    trainer = Trainer(make_plan(settings))
    before = [p.detach().clone() for p in trainer.network.parameters()]
    assert trainer.step(0).loss > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))

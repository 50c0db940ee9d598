"""The objectives: what they aim at, in ε and in v alike."""

import pytest
import torch
from experiments import make_trainer
from networks import randomize
from sliders.data.latents import View
from sliders.data.noise_levels import LEVELS, NOISES, measure_noise_levels
from sliders.train.losses import LOSSES, reference


def test_the_weight_of_the_config_multiplies_each_row(tmp_path):
    weighted = make_trainer(tmp_path / "weighted", train={"min_snr_gamma": 0.2})
    plain = make_trainer(tmp_path / "plain")
    for trainer in (weighted, plain):
        randomize(trainer.network)
    batch = plain.step.make_batch(plain.step.draw(0))
    rows = reference(plain.step.denoiser, batch) * plain.model.objective.min_snr_weight(batch.timesteps, 0.2)
    assert weighted.step.loss_of(weighted.step.make_batch(weighted.step.draw(0))).item() == pytest.approx(
        2 * rows.mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("loss", LOSSES["images"])
def test_every_loss_trains_from_the_config(tmp_path, loss):
    trainer = make_trainer(tmp_path, train={"loss": loss})
    before = [p.detach().clone() for p in trainer.network.parameters()]
    assert trainer.step(0).loss > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_auto_measures_where_the_scales_differ(tmp_path):
    """By a loop over single images, from the definition: the variance over the scales of x0' - x0, the same noise for all."""
    trainer = make_trainer(tmp_path, prompts=[{"target": "", "resolution": 64}], train={"timestep_bias": "auto"})
    model, cache = trainer.model, trainer.step.make_batch.cache
    embeds = [trainer.step.make_batch.prompt_embeds[""]] * 3
    found = measure_noise_levels(model, cache, View(64, False), embeds, "cpu")
    level, level_index = LEVELS[6], 6
    alpha, sigma = model.objective.alphas[level].item(), model.objective.sigmas[level].item()
    variances, errors = [], []
    for draw_index in range(NOISES):
        image = cache[draw_index % 3, View(64, False)]
        generator = torch.Generator().manual_seed(1000 * level + draw_index)
        noise = torch.randn(image.mean.shape[1:], generator=generator)
        deviations = []
        for mean in image.mean * model.vae.config.scaling_factor:
            noisy = alpha * mean + sigma * noise
            time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
            conditioning = {"text_embeds": embeds[0].pooled[None], "time_ids": time_ids}
            with torch.no_grad():
                trainer.network.set_multipliers(None)
                epsilon = model.denoiser(
                    noisy[None], level, embeds[0].tokens[None], added_cond_kwargs=conditioning
                ).sample[0]
            deviations.append((noisy - sigma * epsilon) / alpha - mean)
            errors.append((epsilon - noise).square().mean().item())
        variances.append(torch.stack(deviations).double().var(0).mean().item())
    assert found.differing[level_index] == pytest.approx(sum(variances) / len(variances), rel=1e-3)
    assert found.errors[level_index] == pytest.approx(sum(errors) / len(errors), rel=1e-3)
    assert trainer.step.timestep_weights.shape == (1000,) and trainer.step(0).loss > 0

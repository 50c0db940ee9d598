"""The objective: noise, target and image in ε, v and velocities alike, by the textbook's formulas."""

import diffusers
import pytest
import torch
from networks import SDXL_BETAS
from sliders.models.objective import EPSILON, PREDICTIONS, V_PREDICTION, VELOCITY, Objective

TIMESTEPS = torch.tensor([20, 300, 700, 990])
SHAPES = {"maps": (4, 4, 8, 8), "tokens": (4, 16, 12)}


def objective(prediction):
    if prediction == VELOCITY:
        return Objective.rectified_flow(1000)
    return Objective.from_scheduler_config(SDXL_BETAS, prediction, zero_snr=False)


def draw(count, shape=SHAPES["maps"]):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def levels(o, like):
    return (table[TIMESTEPS].double().view(-1, *[1] * (like.dim() - 1)) for table in (o.alphas, o.sigmas))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_leads_to_the_image_and_to_the_noise(prediction, shape):
    """In float64: x0 = (x_t - sigma eps) / alpha, alpha x_t - sigma v, or x_t - sigma (eps - x0)."""
    o = objective(prediction)
    latents, noise = draw(2, SHAPES[shape])
    noisy, target = o.add_noise(latents, noise, TIMESTEPS), o.target(latents, noise, TIMESTEPS)
    alpha, sigma = levels(o, latents)
    x, t = alpha * latents.double() + sigma * noise.double(), target.double()
    assert torch.allclose(noisy.double(), x, atol=1e-6)
    image = {EPSILON: (x - sigma * t) / alpha, V_PREDICTION: alpha * x - sigma * t, VELOCITY: x - sigma * t}[prediction]
    assert torch.allclose(image, latents.double(), atol=1e-4)
    assert torch.allclose(o.image(noisy, target, TIMESTEPS).double(), image, atol=1e-3)
    assert torch.allclose(o.noise(noisy, target, TIMESTEPS), noise, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [0.2, 5.0, 1e9])
def test_min_snr_weighs_the_error_of_the_image(prediction, gamma):
    """The same wrong image costs min(SNR, gamma) times its squared error, whichever the model predicts."""
    o = objective(prediction)
    latents, noise, wrong = draw(3)
    noisy = o.add_noise(latents, noise, TIMESTEPS)
    alpha, sigma = (level.float() for level in levels(o, latents))
    wrong_noise = (noisy - alpha * wrong) / sigma  # the noise that `wrong` would have been given
    error = o.target(wrong, wrong_noise, TIMESTEPS) - o.target(latents, noise, TIMESTEPS)
    cost = o.min_snr_weight(TIMESTEPS, gamma) * error.square().flatten(1).mean(1)
    snr = (alpha / sigma).square().flatten()
    wanted = snr.clamp(max=gamma) * (wrong - latents).square().flatten(1).mean(1)
    assert torch.allclose(cost, wanted, rtol=2e-3)


def test_noise_is_added_as_by_every_scheduler_that_a_config_may_name():
    """`train.noise_scheduler`: the four differ only in sampling (LMS and Euler-a after `scale_model_input`)."""
    o = objective(EPSILON)
    latents, noise = draw(2, (1, 4, 8, 8))
    for name in ("DDIMScheduler", "DDPMScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        for t in (1, 250, 500, 999):
            scheduler = getattr(diffusers, name)(**SDXL_BETAS)  # a new one, because they cache the index of a timestep
            scheduler.set_timesteps(1000)
            timestep = torch.tensor([t])
            noisy = scheduler.add_noise(latents, noise, timestep)
            noisy = scheduler.scale_model_input(noisy, scheduler.timesteps[scheduler.timesteps == t][0])
            assert torch.allclose(noisy, o.add_noise(latents, noise, timestep), atol=2e-6), (name, t)


def test_the_target_is_the_noise_or_what_diffusers_calls_velocity():
    epsilon, v = (Objective.from_scheduler_config(SDXL_BETAS, p, zero_snr=True) for p in (EPSILON, V_PREDICTION))
    latents, noise = draw(2, (3, 4, 8, 8))
    timesteps = torch.tensor([0, 400, 999])
    scheduler = diffusers.DDPMScheduler(**SDXL_BETAS, rescale_betas_zero_snr=True)
    assert torch.allclose(
        v.target(latents, noise, timesteps), scheduler.get_velocity(latents, noise, timesteps), atol=1e-6
    )
    assert torch.equal(epsilon.target(latents, noise, timesteps), noise)


def test_a_rectified_flow_is_that_of_diffusers():
    o = Objective.rectified_flow(1000)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    assert torch.allclose(o.sigmas, scheduler.sigmas.flip(0), atol=1e-6)
    latents, noise = draw(2)
    noisy = scheduler.scale_noise(latents, scheduler.timesteps[[1, 200, 500, 999]], noise)
    timesteps = 999 - torch.tensor([1, 200, 500, 999])
    assert torch.allclose(o.add_noise(latents, noise, timesteps), noisy, atol=1e-5)

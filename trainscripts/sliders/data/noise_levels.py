"""At which noise levels the folders' images differ in what the frozen model cannot see: measured before training."""

import torch
from tqdm import tqdm

from sliders.data.latents import LatentCache, View
from sliders.data.timesteps import NoiseLevels
from sliders.models.base import Model, PromptEmbeds

LEVELS = tuple(range(40, 1000, 80))  # timesteps
NOISES = 6  # noises per level, spread over the images


@torch.no_grad()
def measure_noise_levels(
    model: Model, cache: LatentCache, view: View, embeds: list[PromptEmbeds], device: str
) -> NoiseLevels:
    """embeds: of each image name, on `device`. The model must have no adaptors attached, or none that are on.

        All scales of an image get the same noise. With x0 the image and x0' what follows from the model's prediction, x0' - x0 is
    the model's error. What is the same of it at every scale says nothing about the slider; its variance over the scales
    does.
    """
    differing, errors = [], []
    for timestep in tqdm(LEVELS, "measuring timesteps", unit="level"):
        alpha, sigma = model.objective.alphas[timestep], model.objective.sigmas[timestep]
        variances, squares = [], []
        for draw in range(NOISES):
            name = draw % len(embeds)
            image = cache[name, view]
            window, geometry = image.crop((0.5, 0.5))
            latents = model.normalise(image.mean[(slice(None), *window)]).to(device)
            scales = len(latents)
            generator = torch.Generator().manual_seed(1000 * timestep + draw)
            noise = torch.randn(latents.shape[1:], generator=generator).to(device).expand_as(latents)
            steps = torch.full((scales,), timestep, device=device)
            conditioning = model.conditioning([embeds[name]] * scales, [geometry] * scales)
            conditioning = {key: value.to(device) for key, value in conditioning.items()}
            noisy = model.objective.add_noise(latents, noise, steps)
            error = model.objective.image(noisy, model.denoise(noisy, steps, conditioning), steps) - latents
            variances.append(error.var(0).mean())
            squares.append((error * alpha / sigma).square().mean())
        differing.append(torch.stack(variances).mean().item())
        errors.append(torch.stack(squares).mean().item())
    return NoiseLevels(LEVELS, tuple(differing), tuple(errors))

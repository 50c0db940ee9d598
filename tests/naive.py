"""The original trainers' step in float64, reimplemented from its description, without code from the package.

Like theirs, it runs separate UNet passes with both halves of classifier-free guidance at scale 1, computes predictions
that nothing uses, and has a backward pass per image. It differs in the timestep: with `max_denoising_steps` 50, Concept
Sliders' own scripts add noise for timestep 980 − 20k but condition the UNet on 999 − 20k; here, as in this project, one
timestep is used for both.
"""

import copy

import numpy as np
import torch
from PIL import Image


def scaled_linear_alphas():
    """ᾱ [1000] of Stable Diffusion's schedule, float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


class NaiveLora:
    """Forward hooks that add up(down(x)) · alpha / rank · multiplier to the outputs of the layers at `paths`."""

    def __init__(self, unet, paths, downs, ups, alpha):
        self.multiplier = 0.0
        self.downs = {p: d.detach().double().clone().requires_grad_() for p, d in zip(paths, downs, strict=True)}
        self.ups = {p: u.detach().double().clone().requires_grad_() for p, u in zip(paths, ups, strict=True)}
        self.alpha = alpha
        for path in paths:
            unet.get_submodule(path).register_forward_hook(self._hook(path))

    def _hook(self, path):
        def hook(layer, inputs, output):
            down, up = self.downs[path], self.ups[path]
            gain = self.alpha / down.shape[0] * self.multiplier
            if isinstance(layer, torch.nn.Conv2d):
                hidden = torch.nn.functional.conv2d(inputs[0], down, stride=layer.stride, padding=layer.padding)
                return output + gain * torch.nn.functional.conv2d(hidden, up)
            return output + gain * (inputs[0] @ down.T @ up.T)

        return hook


class NaiveTrainer:
    """The step with a float64 copy of a model's UNet, and its VAE."""

    def __init__(self, unet, vae, paths, downs, ups, alpha):
        self.unet = copy.deepcopy(unet).double()
        self.vae = vae
        self.lora = NaiveLora(self.unet, paths, downs, ups, alpha)
        self.alphas_cumprod = scaled_linear_alphas()

    def encode(self, path, eps):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
        with torch.no_grad():
            posterior = self.vae.encode(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())).latent_dist
        return ((posterior.mean + posterior.std * eps) * self.vae.config.scaling_factor).double()

    def guided(self, noisy, timestep, prompt, unconditional, resolution, multiplier):
        """Prediction with guidance 1: unconditional + 1 · (conditional − unconditional), both from one UNet call."""
        self.lora.multiplier = multiplier
        time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]] * 2, dtype=torch.float64)
        output = self.unet(
            torch.cat([noisy, noisy]),
            timestep,
            encoder_hidden_states=torch.stack([unconditional.tokens, prompt.tokens]).double(),
            added_cond_kwargs={
                "text_embeds": torch.stack([unconditional.pooled, prompt.pooled]).double(),
                "time_ids": time_ids,
            },
        ).sample
        half, conditional = output.chunk(2)
        return half + 1.0 * (conditional - half)

    def row(self, latents, noise, timestep, prompt, unconditional, resolution, scale):
        """One image at its folder's scale. Returns the loss; gradients accumulate in the LoRA's tensors."""
        a = self.alphas_cumprod[timestep]
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        with torch.no_grad():  # the result is not used
            self.guided(noisy, timestep, unconditional, unconditional, resolution, 0.0)
        loss = ((self.guided(noisy, timestep, prompt, unconditional, resolution, scale) - noise) ** 2).mean()
        loss.backward()
        return loss.item()

"""The ancestors' training step, written from the facts about it and not from the package: slow, plain, in float64.

Four separate UNet passes with both classifier-free-guidance halves at guidance 1, two of the passes unused, a backward
pass of its own for each of the two losses, Python-float multipliers, LoRA by forward hooks.
"""

import copy

import numpy as np
import torch
from PIL import Image


class NaiveLora:
    """up(down(x)) · alpha / rank · multiplier, added by a hook to the output of each named layer."""

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
    """The step over a float64 copy of a model's UNet and VAE."""

    def __init__(self, unet, vae, paths, downs, ups, alpha):
        self.unet = copy.deepcopy(unet).double()
        self.vae = vae
        self.lora = NaiveLora(self.unet, paths, downs, ups, alpha)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)

    def encode(self, path, eps):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
        with torch.no_grad():
            posterior = self.vae.encode(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())).latent_dist
        return ((posterior.mean + posterior.std * eps) * self.vae.config.scaling_factor).double()

    def guided(self, noisy, timestep, prompt, unconditional, resolution, multiplier):
        """Both halves in one call, then unconditional + 1 · (conditional − unconditional)."""
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

    def step(self, low, high, noise, timestep, prompts, resolution, scales):
        """low, high: latents of the two images. Returns the loss; gradients are left on the LoRA's tensors."""
        a = self.alphas_cumprod[timestep]
        positive, neutral, unconditional = prompts
        noisy_low = a.sqrt() * low + (1 - a).sqrt() * noise
        noisy_high = a.sqrt() * high + (1 - a).sqrt() * noise
        with torch.no_grad():  # the two passes that nobody reads
            self.guided(noisy_high, timestep, neutral, unconditional, resolution, 0.0)
            self.guided(noisy_low, timestep, positive, unconditional, resolution, 0.0)
        prediction = self.guided(noisy_high, timestep, positive, unconditional, resolution, scales[1])
        loss_high = ((prediction - noise) ** 2).mean()
        loss_high.backward()
        prediction = self.guided(noisy_low, timestep, neutral, unconditional, resolution, scales[0])
        loss_low = ((prediction - noise) ** 2).mean()
        loss_low.backward()
        return loss_high.item() + loss_low.item()

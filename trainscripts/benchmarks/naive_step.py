"""A training step that does the same work as the original trainers' step, as a baseline for bench_step.py.

It encodes both images with the VAE in float32, runs four UNet passes with classifier-free guidance and ignores two of
them, runs one backward pass per image, adds LoRA as a module beside each layer, updates each tensor separately with
AdamW, and frees the GPU's cached memory after every step.
"""

import gc

import torch
from sliders.compute.device import place
from sliders.models.sdxl.model import SDXL
from torch import Tensor, nn


class PlainLora(nn.Module):
    """Adds multiplier · gain · up(down(x)) to the output of `layer`. gain = alpha / rank."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float):
        super().__init__()
        self.base, self.gain, self.multiplier = [layer.forward], alpha / rank, 0.0
        if isinstance(layer, nn.Conv2d):
            rank = min(rank, layer.in_channels, layer.out_channels)
            geometry = {"stride": layer.stride, "padding": layer.padding, "bias": False}
            self.down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, **geometry)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        layer.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.base[0](x) + self.up(self.down(x)) * self.multiplier * self.gain


class NaiveStep:
    """`step()` trains once on two random images of `resolution` px and returns the sum of their losses."""

    def __init__(self, model: SDXL, layers: dict[str, nn.Module], rank: int, resolution: int, device: str):
        self.model, self.device, self.resolution = model, device, resolution
        place(model.denoiser, device, model.dtype)
        model.denoiser.requires_grad_(False)
        model.pipe.vae.to(device)
        dtype = model.denoiser.dtype
        self.loras = nn.ModuleList(PlainLora(layer, rank, rank / 2) for layer in layers.values()).to(device, dtype)
        self.optimizer = torch.optim.AdamW(self.loras.parameters(), lr=1e-4)
        embeds = model.encode_prompts(["", "positive"], device)
        self.tokens = torch.stack([embeds[p].tokens for p in ("", "positive")])
        self.pooled = torch.stack([embeds[p].pooled for p in ("", "positive")])
        self.images = torch.rand(2, 1, 3, resolution, resolution) * 2 - 1

    def _predict(self, noisy: Tensor, timestep: Tensor, multiplier: float) -> Tensor:
        for lora in self.loras:
            lora.multiplier = multiplier
        side = self.resolution
        time_ids = torch.tensor([[side, side, 0, 0, side, side]] * 2, device=self.device, dtype=torch.float32)
        conditioning = {"tokens": self.tokens, "pooled": self.pooled, "time_ids": time_ids}
        halves = self.model.denoise(torch.cat([noisy] * 2), timestep.repeat(2), conditioning)
        unconditional, conditional = halves.chunk(2)
        return unconditional + 1.0 * (conditional - unconditional)

    def step(self) -> float:
        objective = self.model.objective.to(self.device)
        timestep = torch.randint(1, 999, (1,), device=self.device)
        with torch.no_grad():
            vae = self.model.pipe.vae
            encoded = [vae.encode(image.to(self.device)).latent_dist.sample() for image in self.images]
            latents = [self.model.normalise(e) for e in encoded]
            noise = torch.randn_like(latents[0])
            noisy = [objective.add_noise(x, noise, timestep) for x in latents]
            for x in noisy:
                self._predict(x, timestep, 0.0)  # the original trainers never use the result
        total = 0.0
        for x, multiplier in zip(noisy, (2.0, 0.67), strict=True):
            loss = (self._predict(x, timestep, multiplier) - noise).square().mean()
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return total

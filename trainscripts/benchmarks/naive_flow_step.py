"""A training step of a flow model with diffusers and PEFT alone, as a baseline for bench_step.py.

Latents and prompts are encoded beforehand. It runs a forward and a backward pass for each of the two images, with PEFT's LoRA
layers beside diffusers' own, and updates them with torch's AdamW.
"""

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from random_flow import random_transformer
from sliders.models.base import Conditioning, Model
from sliders.models.flux2.latents import image_places, text_places, to_tokens
from torch import Tensor, nn

PARTS = {"flux2": ("transformer_blocks.", "single_transformer_blocks."), "zimage": ("layers.",)}
MULTIPLIERS = (2.0, 0.67)


class NaiveFlowStep:
    """`step()` trains once on two random images of `resolution` px and returns the sum of their losses.

    model: on the meta device; it says what the transformer reads.
    """

    def __init__(self, family: str, model: Model, rank: int, resolution: int, device: str):
        self.family, self.device, dtype = family, device, model.dtype
        self.transformer = random_transformer(family, device, dtype).requires_grad_(False).train()
        adapted = [
            name
            for name, layer in self.transformer.named_modules()
            if isinstance(layer, nn.Linear) and name.startswith(PARTS[family]) and "modulation" not in name.lower()
        ]
        self.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank / 2, target_modules=adapted))
        self.adaptors = [layer for layer in self.transformer.modules() if isinstance(layer, LoraLayer)]
        trained = [weight for weight in self.transformer.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        (prompt,) = model.encode_prompts([""], device).values()
        self.prompt = prompt.tokens
        shape = model.facts.latent_shape(resolution, resolution)
        self.latents = torch.randn(2, 1, *shape, device=device, dtype=dtype)

    def _predict(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        if self.family == "zimage":
            output, *_ = self.transformer([noisy[0][:, None]], 1 - sigma, [self.prompt], return_dict=False)
            return -output[0][:, 0][None]
        places: Conditioning = {
            "img_ids": image_places(noisy.shape[2:], noisy.device),
            "txt_ids": text_places(len(self.prompt), noisy.device),
        }
        tokens = to_tokens(noisy)
        output = self.transformer(
            hidden_states=tokens, encoder_hidden_states=self.prompt[None], timestep=sigma, return_dict=False, **places
        )[0]
        return output.mT.reshape(noisy.shape)

    def step(self) -> float:
        sigma = torch.rand(1, device=self.device, dtype=self.latents.dtype)
        noise = torch.randn_like(self.latents[0])
        total = 0.0
        for latents, multiplier in zip(self.latents, MULTIPLIERS, strict=True):
            for layer in self.adaptors:
                layer.set_scale("default", multiplier)
            predicted = self._predict((1 - sigma) * latents + sigma * noise, sigma)
            loss = (predicted.float() - (noise - latents).float()).square().mean()
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

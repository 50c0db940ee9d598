"""The noise schedule: how much of an image is left at each timestep, and what the model shall predict."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

EPSILON, V_PREDICTION = "epsilon", "v_prediction"


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise, x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε  (Ho et al. 2020, arXiv:2006.11239, eq. 4).

    `train.noise_scheduler` may name ddim, ddpm, lms or euler_a: they share SDXL's betas and differ only in how they
    *sample*. LMS and Euler-a write the noise in σ-space, which after their `scale_model_input` is this x_t again.
    """

    alphas_cumprod: Tensor  # ᾱ, [1000] float32
    prediction_type: str = EPSILON

    @classmethod
    def from_scheduler_config(cls, config: dict, prediction_type: str, zero_snr: bool) -> "NoiseSchedule":
        """`config`: a diffusers scheduler_config. `zero_snr`: rescale so that nothing is left at t = 999
        (Lin et al. 2024, arXiv:2305.08891, algorithm 1)."""
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        betas = {key: config[key] for key in keys if key in config}
        return cls(DDPMScheduler(**betas, rescale_betas_zero_snr=zero_snr).alphas_cumprod.float(), prediction_type)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(self.alphas_cumprod.to(device), self.prediction_type)

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """timesteps [B] int → α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t), each [B, 1, 1, 1] float32."""
        alphas_cumprod = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """latents, noise [B, 4, h, w] float32 → x_t, the same shape and dtype."""
        alpha, sigma = self.coefficients(timesteps)
        return alpha * latents + sigma * noise

    def target(self, noisy: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """What the model shall predict for `noisy` so that one step of full length leads to `latents`.

        ε = (x_t − α·x₀) / σ, or v = α·ε − σ·x₀ (Salimans & Ho 2022, arXiv:2202.00512). Where `noisy` was made from
        `latents`, ε is the noise that was added. [B, 4, h, w] float32.
        """
        alpha, sigma = self.coefficients(timesteps)
        noise = (noisy - alpha * latents) / sigma
        return noise if self.prediction_type == EPSILON else alpha * noise - sigma * latents

    def shift(self, sources: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """What a prediction that leads to `sources` lacks to lead to `latents`: `target` of the one less the other's."""
        alpha, sigma = self.coefficients(timesteps)
        factor = alpha / sigma if self.prediction_type == EPSILON else 1 / sigma
        return factor * (sources - latents)

    def crossing_weight(self, timesteps: Tensor) -> Tensor:
        """[B]: the squared error counts in ε while noise prevails, in the image itself (σ²/α² of that in ε) once the image
        does; there a target in ε would grow without bound for a fixed difference of images."""
        alpha, sigma = (c.flatten() for c in self.coefficients(timesteps))
        if self.prediction_type == EPSILON:
            return (sigma / alpha).square().clamp(max=1)
        return torch.minimum(alpha, sigma).square()

"""The noise schedule: how much of an image is left at each timestep, and what the model predicts."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

EPSILON, V_PREDICTION = "epsilon", "v_prediction"


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise, x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε (Ho et al. 2020, arXiv:2006.11239, eq. 4).

    It is the same for every `train.noise_scheduler`: ddim, ddpm, lms and euler_a differ only in how they sample. lms
    and euler_a add noise in σ-space, but their `scale_model_input` turns the result into this x_t.
    """

    alphas_cumprod: Tensor  # ᾱ, [1000] float32
    prediction_type: str = EPSILON

    @classmethod
    def from_scheduler_config(cls, config: dict, prediction_type: str, zero_snr: bool) -> "NoiseSchedule":
        """config: a diffusers scheduler's. zero_snr: rescales ᾱ so that the last timestep is pure noise.

        The rescaling is algorithm 1 of Lin et al. 2024, arXiv:2305.08891.
        """
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        betas = {key: config[key] for key in keys if key in config}
        return cls(DDPMScheduler(**betas, rescale_betas_zero_snr=zero_snr).alphas_cumprod.float(), prediction_type)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(self.alphas_cumprod.to(device), self.prediction_type)

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """timesteps [B] int64 → α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t), each [B, 1, 1, 1] float32."""
        alphas_cumprod = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """latents, noise [B, c, h, w] float32, timesteps [B] int64 → x_t [B, c, h, w] float32."""
        alpha, sigma = self.coefficients(timesteps)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict: ε, or v = α·ε − σ·x₀ (Salimans & Ho 2022, arXiv:2202.00512).

        latents, noise and the result: [B, c, h, w] float32. timesteps: [B] int64.
        """
        if self.prediction_type == EPSILON:
            return noise
        alpha, sigma = self.coefficients(timesteps)
        return alpha * noise - sigma * latents

    def image(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The latents x₀ that follow from a prediction for `noisy`; all [B, c, h, w] float32, timesteps [B] int64."""
        alpha, sigma = self.coefficients(timesteps)
        if self.prediction_type == EPSILON:
            return (noisy - sigma * prediction) / alpha
        return alpha * noisy - sigma * prediction

    def noise(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The noise ε that follows from a prediction for `noisy`; shapes as for `image`."""
        if self.prediction_type == EPSILON:
            return prediction
        alpha, sigma = self.coefficients(timesteps)
        return alpha * prediction + sigma * noisy

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Weight [B] float32 of the squared error: min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v.

        SNR = ᾱ / (1 − ᾱ). Hang et al. 2023, arXiv:2303.09556, section 3.4.
        """
        alphas_cumprod = self.alphas_cumprod[timesteps]
        snr = alphas_cumprod / (1 - alphas_cumprod)
        capped = snr.clamp(max=gamma)
        return capped / snr.clamp(min=1e-9) if self.prediction_type == EPSILON else capped / (snr + 1)

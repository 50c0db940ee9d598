"""The objective of training: how noisy an image is at each timestep, and what the denoiser predicts of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from diffusers import DDPMScheduler
from torch import Tensor

EPSILON, V_PREDICTION, VELOCITY = "epsilon", "v_prediction", "velocity"


class Prediction(NamedTuple):
    """A prediction is n · ε + m · x₀.

    mix: α, σ → n, m and n · α − m · σ. error: SNR → squared error of a prediction / that of the x₀ which follows from it.
    """

    mix: Callable[[Tensor, Tensor], tuple]
    error: Callable[[Tensor], Tensor]


PREDICTIONS = {
    EPSILON: Prediction(lambda alpha, sigma: (1, 0, alpha), lambda snr: snr.clamp(min=1e-9)),
    # v = α · ε − σ · x₀, with α² + σ² = 1 (Salimans & Ho 2022, arXiv:2202.00512)
    V_PREDICTION: Prediction(lambda alpha, sigma: (alpha, -sigma, 1), lambda snr: snr + 1),
    # ε − x₀ (rectified flow, Liu et al. 2022, arXiv:2209.03003)
    VELOCITY: Prediction(lambda alpha, sigma: (1, -1, alpha + sigma), lambda snr: (snr.sqrt() + 1).square()),
}


@dataclass(frozen=True)
class Objective:
    """Noise x_t = α_t · x₀ + σ_t · ε, and the prediction of a linear mix of ε and x₀.

    In all methods, latents, noise, noisy (x_t) and prediction are [B, …] float32, timesteps [B] int64.
    """

    alphas: Tensor  # [timesteps] float32
    sigmas: Tensor  # the same
    snr: Tensor  # signal-to-noise ratio, (α / σ)²; the same
    prediction_type: str = EPSILON  # a key of PREDICTIONS

    @classmethod
    def variance_preserving(cls, alphas_cumprod: Tensor, prediction_type: str = EPSILON) -> Self:
        """α = √ᾱ, σ = √(1 − ᾱ) (Ho et al. 2020, arXiv:2006.11239, eq. 4). alphas_cumprod: ᾱ, [timesteps] float32."""
        snr = alphas_cumprod / (1 - alphas_cumprod)
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), snr, prediction_type)

    @classmethod
    def from_scheduler_config(cls, config: Mapping, prediction_type: str, zero_snr: bool) -> Self:
        """config: of a diffusers scheduler with betas. zero_snr: rescales ᾱ so that the last timestep is pure noise.

        The rescaling is algorithm 1 of Lin et al. 2024, arXiv:2305.08891.
        """
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        betas = {key: config[key] for key in keys if key in config}
        scheduler = DDPMScheduler(**betas, rescale_betas_zero_snr=zero_snr)
        return cls.variance_preserving(scheduler.alphas_cumprod.float(), prediction_type)

    @classmethod
    def rectified_flow(cls, timesteps: int) -> Self:
        """α = 1 − σ, with σ from 1 / timesteps to 1, and velocities."""
        sigmas = torch.arange(1, timesteps + 1, dtype=torch.float32) / timesteps
        return cls(1 - sigmas, sigmas, ((1 - sigmas) / sigmas).square(), VELOCITY)

    def to(self, device: torch.device | str) -> Self:
        tables = (table.to(device) for table in (self.alphas, self.sigmas, self.snr))
        return type(self)(*tables, self.prediction_type)

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of each row, to be multiplied with a tensor that has the dimensions of `like`."""
        return broadcast_rows(self.alphas[timesteps], like), broadcast_rows(self.sigmas[timesteps], like)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns x_t."""
        alpha, sigma = self._levels(timesteps, latents)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict."""
        n, m, _ = PREDICTIONS[self.prediction_type].mix(*self._levels(timesteps, latents))
        return n * noise + m * latents

    def image(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The latents x₀ that follow from a prediction for `noisy`."""
        alpha, sigma = self._levels(timesteps, noisy)
        n, _, determinant = PREDICTIONS[self.prediction_type].mix(alpha, sigma)
        return (n * noisy - sigma * prediction) / determinant

    def noise(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The noise ε that follows from a prediction for `noisy`."""
        alpha, sigma = self._levels(timesteps, noisy)
        _, m, determinant = PREDICTIONS[self.prediction_type].mix(alpha, sigma)
        return alpha / determinant * prediction - m / determinant * noisy

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Weight [B] float32 of a prediction's squared error that makes it min(SNR, γ) times the error of x₀.

        Hang et al. 2023, arXiv:2303.09556, section 3.4.
        """
        snr = self.snr[timesteps]
        return snr.clamp(max=gamma) / PREDICTIONS[self.prediction_type].error(snr)


def broadcast_rows(values: Tensor, like: Tensor) -> Tensor:
    """values [B] → [B, 1, …], to be multiplied with `like`, [B, …]."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))

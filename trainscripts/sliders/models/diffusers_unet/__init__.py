"""What the families have in common whose denoiser is diffusers' `UNet2DConditionModel`."""

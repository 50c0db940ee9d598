"""What makes the denoiser and the VAE faster without changing what they compute: fused layers and blocks, kernels, graphs."""

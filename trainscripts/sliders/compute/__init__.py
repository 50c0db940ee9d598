"""How the denoiser computes: device, attention, fused blocks and their kernels, compilation, quantisation."""

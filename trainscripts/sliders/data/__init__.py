"""Scale folders become checked images, latents, and the tensors of one training step."""

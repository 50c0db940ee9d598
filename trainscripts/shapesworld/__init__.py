"""A small world in which a slider's effect is measured in the picture, and narrow models trained on it."""

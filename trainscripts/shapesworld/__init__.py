"""A small world in which a slider's effect is measured in the picture, and a narrow SDXL trained on it."""

"""What the worlds share in which sliders are measured."""

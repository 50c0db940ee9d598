"""How modules compute: device and precision, quantised storage, and replaced forward passes."""

"""The files that outlive a run: slider files, web UIs' sidecars, checkpoints, and conversion of older sliders."""

"""Sampling: from prompts and multipliers to pictures, grids, measures of change, and an HTML page."""
